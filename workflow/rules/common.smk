# What the rules share: the project of the user's config, and the names that wildcards may take.
from quantmill.flow.rules import files, of, pattern, stage
from quantmill.flow.start import begin

flow = begin(workflow, config, ancient, local)
project, inputs, targets, specs, card_specs = flow[:5]
spec_of, resources, shards = flow.spec_of, flow.resources, flow.shards


pathvars:
    results=str(project.results),


wildcard_constraints:
    model=pattern(project.models),
    corpus=pattern(project.config.corpora),
    recipe=pattern(project.recipes),
    row=pattern(project.row_names),
    file=pattern(project.fetched_files),
    shard=r"\d+of\d+",
