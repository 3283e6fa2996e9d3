"""A small diffusion transformer on a real clip: trained, quantized, judged on unseen frames."""
