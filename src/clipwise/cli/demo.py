"""``clipwise demo``"""
