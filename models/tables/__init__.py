"""Tables of trained networks: a JSON file each (bgnn.models.table)."""
