"""The parts of the pages that are written from the code; `python -m docs.generate` puts them where they belong."""
