"""Gamma rays: photons through an instrument response, and what sends them."""
