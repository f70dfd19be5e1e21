"""Diffusion on arrays: noises, denoisers and what wraps them, samplers; nothing here knows a
network or a text.
"""
