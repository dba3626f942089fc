"""Configurations: a JSON file per row of the papers' tables (bgnn.models.recipes)."""
