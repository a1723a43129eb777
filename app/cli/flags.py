"""Options of the command line in errors, which name the parameters of the HTTP interface."""

import re


def name_flags(message: str) -> str:
    """Replace a parameter's name in an error, such as `max_error=0.1`, by the option's.

    A name without underscore may be a word of the sentence: it is replaced where it begins it with
    a colon, or where a value is assigned to it.
    """
    # Schemas are imported for an error only.
    from app.schemas.service import CalibrateForm, SegmentQuery

    names = {*SegmentQuery.model_fields, *CalibrateForm.model_fields, "url", "token"}
    names |= {"image_index", "group_index"}
    message = re.sub(rf"^({'|'.join(names)}): ", lambda m: f"{flag(m[1])}: ", message)
    message = re.sub(
        rf"(?<![\w/.-])({'|'.join(names)})=(?=[\w.])", lambda m: f"{flag(m[1])} ", message
    )
    compound = "|".join(name for name in names if "_" in name)
    return re.sub(rf"(?<![\w/.'\"-])({compound})(?![\w=])", lambda m: flag(m[1]), message)


def flag(name: str) -> str:
    """Return the option of a parameter."""
    return "--" + name.replace("_", "-")
