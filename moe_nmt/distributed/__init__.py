"""Experts spread over ranks, on torch.distributed: groups of ranks, exchange of rows, gradients, and traffic."""
