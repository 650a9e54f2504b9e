"""What a loss says, and what training with it has done to a policy.

`logic` reads a preference loss as a statement about four events and compares losses; `ranking`,
`likelihood`, `concentration` and `sparsity` are measures of a trained policy; `measuring` takes
them all of one policy.
"""
