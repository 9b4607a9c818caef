"""Encoders and decoders, of images and of vectors."""
