"""The policy at inference: picture and question in, one decision out."""
