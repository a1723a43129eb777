"""Evaluation of a served model on labelled images, and its report."""
