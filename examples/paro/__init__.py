"""PAROAttention's calibration on a real clip: chosen on some frames, judged on others."""
