"""The engines behind `causal_core.engine.Engine`: how gradients of several workers become one."""
