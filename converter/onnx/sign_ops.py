"""x"""

LOWERINGS: dict = {}
