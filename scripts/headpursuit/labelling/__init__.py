"""Labelling: a backend names harmful words of responses, or keywords of images; all is kept."""
