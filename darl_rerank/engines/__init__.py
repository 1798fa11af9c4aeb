"""What runs the network: torch, or ONNX Runtime, behind one protocol (`base.Engine`)."""
