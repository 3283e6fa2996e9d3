"""The main job on a real clip: video frames to q, k, v, calibration, kernel, comparison, report.

``python -m examples.clip.calibrate`` prints the calibration alone.
"""
