"""OPA-DPO: an expert corrects what the policy wrote, and the corrections are learned from."""
