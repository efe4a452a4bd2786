"""The hazards that were noted of an image."""

from __future__ import annotations


def told(image):
    return " ".join(text for _, text in image.provenance["hazards"])


def codes(image):
    return {code for code, _ in image.provenance["hazards"]}
