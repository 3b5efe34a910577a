"""``clipwise evaluate``"""
