"""Run the benchmark of the postprocessing kernel, see `benchmarks.emission`."""

from benchmarks.emission import main

if __name__ == "__main__":
    main()
