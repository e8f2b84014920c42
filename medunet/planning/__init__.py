"""Planning: a data set is measured, and a config comes out that gives a reason for each value.

The story is `medunet.plan_training`. Planning knows the parts, the config and nothing of other stories.

From top to bottom: network, recipe, trial, preprocessing, budget, fingerprint, laterality, rules.
"""
