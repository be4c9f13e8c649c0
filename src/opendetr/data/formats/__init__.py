"""Readers and writers of annotation formats, and how a folder's format is recognised."""
