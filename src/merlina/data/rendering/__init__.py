"""Rendering of pairs as text: chat formats, models' own chat templates, tools and reasoning."""
