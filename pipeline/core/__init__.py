"""The method as pure functions: no files, clock, network, weights, PIL or torch.

boxes          fractions of an image <-> a model's coordinate frame <-> pixels
completion     what the policy writes <-> Decision
prompts        what the policy is asked
ranking        scores of a pool -> Outcome
metrics        per-query measures and the paper's CondRecall
reward         Outcome of a view against the full image -> Reward
advantage      rewards of a group -> advantages of r-GRPO
region_search  candidate boxes and the label that the best of them earns
risk_control   a bound on harm that holds for queries not seen
significance   bootstrap intervals and a randomisation test, over clusters of queries; significance_seeds over seeds too

Arrays carry shape suffixes: Q queries, K candidates of a pool, B groups, G rows of a group or clusters of queries,
R resamples, S seeds.
"""
