"""Prompts by frame."""
