"""The engines behind one protocol (`base.Engine`): how gradients of several workers become one."""
