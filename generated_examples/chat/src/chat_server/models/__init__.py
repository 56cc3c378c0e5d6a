"""Yours: the models of this service beyond the template's, named in `custom.py`."""
