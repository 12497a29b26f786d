# The spec of every output: canonical JSON of all that decides it, as a function of
# names alone. What it is made from enters by its own spec's digest, so that a
# change far up reaches all that hangs on it, whatever the files' times say.
# Nothing else of the config reaches a stage.


def argument(text):
    """A spec as a word of a command line, and the one param of a rule."""
    with refusing():
        return spec.argument(text, SPECS)


@cached
def engine(name="mainline"):
    if workflow.local_exec:  # other machines may have what this one lacks, and see for themselves
        library.check(name)
    return library.digest(MEMO.sha256, name)


@cached
def engine_generating(model, row):
    """The digest of the engine that generates with a row's file: llama.cpp, or a refusal."""
    if not served_by(model, row):
        raise QuantmillError(
            f"{row} of {model} is of engine ik, in which nothing generates",
            config_file,
            "ask for its kld, perplexity and speed",
        )
    return engine()


def with_engine(model, row, settings):
    """The settings of a stage that runs in a row's engine, which it is told where it is not mainline."""
    name = engine_of(model, row)
    return settings if name == "mainline" else settings | {"engine": name}


@cached
def source_sha256(model):
    """Identity of the source: of its bytes, or of the commit that it is fetched from."""
    source = cfg.models[model].source
    if isinstance(source, user.HubSource):
        return spec.digest(source.model_dump())
    if isinstance(source, user.CheckpointSource):
        return spec.digest(convert_spec(model))
    digests = [file_sha256(file) for file in source_of(model)]
    return digests[0] if len(digests) == 1 else spec.digest("\n".join(digests))


@cached
def file_sha256(path):
    """Identity of an input's bytes; one that would fail the jobs that read it is refused."""
    if os.path.exists(path):
        check_input(Path(path), config_file, RESULTS)
    return MEMO.sha256(Path(path))


@cached
def imatrix_facts(model):
    """What a GGUF says of the imatrix that it was made with."""
    chunks = cfg.imatrix_of(model)
    if model in GIVEN_IMATRIX:
        dataset, count = imatrix.facts(Path(chunks.file))
        return {"file": os.path.basename(chunks.file), "dataset": dataset, "chunks": count}
    return chunks and {
        "file": f"{model}-imatrix.gguf",
        "dataset": chunks.corpus,
        "chunks": chunks.chunks,
    }


@cached
def fetch_spec(model, file):
    source = cfg.models[model].source
    return spec.make(
        "model.fetch",
        {"repo": source.hf, "file": file, "revision": source.revision},
        {},
    )


@cached
def checkpoint_sha256(model):
    """Identity of a checkpoint: of all its files."""
    return spec.digest({path.name: file_sha256(path) for path in CHECKPOINTS[model].files})


@cache
def converter():
    """Identity of the converter, whether it is there yet or not: what is pinned of it."""
    locks = (Path(workflow.basedir, "envs", name) for name in ("engine.lock", "converter.lock"))
    return spec.digest("".join(lock.read_text("utf-8") for lock in locks))


@cached
def convert_spec(model):
    source = CHECKPOINTS[model]
    settings = {"to": source.to, "pre_tokenizer": source.pre_tokenizer}
    made_from = {"source": checkpoint_sha256(model), "converter": converter()}
    return spec.make("checkpoint.convert", settings, made_from)


@cached
def manifest_spec(model):
    return spec.make("model.manifest", {}, {"model": source_sha256(model)})


@cached
def check_spec(model):
    return spec.make("check.source", {"model": model}, {"model": source_sha256(model)}, engine=engine())


@cached
def corpus_spec(model, corpus):
    used = cfg.corpora_of(model)
    if corpus not in used:
        raise QuantmillError(
            f"{model} does not use the corpus {corpus}",
            config_file,
            f"it uses {', '.join(used)}",
        )
    chosen, chunks = cfg.corpora[corpus], used[corpus]
    settings = {
        "corpus": corpus,
        "seed": chosen.seed,
        "context": chunks.context,
        "chunks": chunks.chunks,
        "sources": [source.model_dump(exclude={"path"}) for source in chosen.sources],
    }
    made_from = {
        "model": source_sha256(model),
        "files": [file_sha256(path) for path in corpus_sources_of(corpus)],
        "disjoint_from": [spec.digest(corpus_spec(model, other)) for other in disjoint_from(model, corpus)],
    }
    return spec.make("corpus.build", settings, made_from, engine=engine())


@cached
def imatrix_spec(model):
    if model in GIVEN_IMATRIX:
        file = imported_imatrix_of(model)
        made_from = {"model": source_sha256(model), "imatrix": file_sha256(file)}
        return spec.make("imatrix.imported", {"file": os.path.basename(file)}, made_from)
    chunks = calibration_of(model)
    made_from = {
        "model": source_sha256(model),
        "corpus": spec.digest(corpus_spec(model, chunks.corpus)),
    }
    return spec.make("measure.imatrix", chunks.model_dump(), made_from, engine=engine())


def pool_of(model):
    """The types that the sensitivity is measured at, by their own names."""
    return [known_type(name, "sensitivity.types", config_file) for name in probes_of(model).types]


@cached
def sensitivity_spec(model):
    probes = probes_of(model)
    settings = probes.model_dump() | {"types": pool_of(model)}
    made_from = {
        "model": source_sha256(model),
        "manifest": spec.digest(manifest_spec(model)),
        "corpus": spec.digest(corpus_spec(model, probes.corpus)),
        "imatrix": [spec.digest(imatrix_spec(model)) for _ in imatrix_of(model)],
    }
    return spec.make("sensitivity.measure", settings, made_from, engine=engine())


@cached
def render_spec(model, recipe):
    chosen = recipe_of(model, recipe)
    settings = {"recipe": recipe, "parameters": chosen.parameters}
    made_from = {
        "model": source_sha256(model),
        "template": file_sha256(template_of(model, recipe)),
    }
    # What a plain recipe does not ask for must not make it stale.
    if chosen.file is not None:
        settings["form"] = chosen.form
        made_from["file"] = file_sha256(chosen.file)
    if chosen.weights:
        settings["importance"] = chosen.weights
        made_from["scores"] = [file_sha256(path) for path in scores_of(model, recipe)]
        made_from["imatrix"] = [
            spec.digest(imatrix_spec(model)) for source in chosen.weights if source == "imatrix"
        ]
        made_from["sensitivity"] = [
            spec.digest(damages_spec(model)) for source in chosen.weights if source == "sensitivity"
        ]
    return spec.make("recipe.render", settings, made_from)


@cached
def import_spec(model):
    imported = cfg.sensitivity_of(model)
    made_from = {
        "model": source_sha256(model),
        "results": file_sha256(imported.results),
        "curve": file_sha256(imported.curve),
    }
    return spec.make("budget.imported", {}, made_from, engine=engine())


@cached
def damages_spec(model):
    return (import_spec if model in IMPORTED else sensitivity_spec)(model)


def budget_settings(model, recipe):
    """What decides the choices of a recipe that is fitted to a budget."""
    settings = recipe_of(model, recipe).settings | {"imatrix": imatrix_facts(model)}
    candidates.check(settings, place_of(model, recipe))
    return settings


@cached
def reach_spec(model, recipe):
    settings = budget_settings(model, recipe) | {"measured": pool_of(model)}
    return spec.make("budget.reach", settings, {"model": source_sha256(model)}, engine=engine())


@cached
def allocate_spec(model, recipe):
    made_from = {
        "model": source_sha256(model),
        "sensitivity": spec.digest(damages_spec(model)),
        "refit": [],  # as the setting of that name
    }
    return spec.make("budget.allocate", budget_settings(model, recipe), made_from, engine=engine())


@cached
def plan_spec(model, recipe):
    made_from = {
        "model": source_sha256(model),
        "recipe": spec.digest((allocate_spec if fitted(model, recipe) else render_spec)(model, recipe)),
    }
    settings = {"recipe": recipe, "imatrix": imatrix_facts(model)}
    return spec.make("recipe.plan", settings, made_from, engine=engine())


@cached
def memory_spec(model):
    made_from = {"plans": [spec.digest(plan_spec(model, recipe)) for recipe in cfg.recipes_of(model)]}
    return spec.make("model.memory", {"contexts": cfg.models[model].card.contexts}, made_from)


@cached
def quantize_spec(model, recipe):
    made_from = {
        "manifest": spec.digest(manifest_spec(model)),
        "plan": spec.digest(plan_spec(model, recipe)),
        "imatrix": [spec.digest(imatrix_spec(model)) for _ in imatrix_of(model)],
    }
    settings = with_engine(model, recipe, {"imatrix": imatrix_facts(model)})
    if most := split_of(model, recipe):
        settings["split"] = most
    return spec.make("quantize.write", settings, made_from, engine=engine(engine_of(model, recipe)))


@cached
def activations_spec(model):
    chunks = calibration_of(model)
    made_from = {
        "model": source_sha256(model),
        "corpus": spec.digest(corpus_spec(model, chunks.corpus)),
    }
    return spec.make("checkpoint.calibrate", chunks.model_dump(), made_from, engine=engine())


@cached
def export_spec(model, recipe):
    form = EXPORTED[model][recipe].form or "modelopt"
    made_from = {
        "source": checkpoint_sha256(model),
        "activations": [spec.digest(activations_spec(model)) for _ in activations_of(model, recipe)],
    }
    return spec.make("checkpoint.export", {"recipe": recipe, "form": form}, made_from)


@cached
def gguf_identity(model, recipe):
    return source_sha256(model) if recipe in SOURCES else spec.digest(quantize_spec(model, recipe))


@cached
def divergence_spec(model, recipe):
    chunks = measured_on(model, "kld")
    made_from = {
        "model": gguf_identity(model, recipe),
        "reference": source_sha256(model),
        "corpus": spec.digest(corpus_spec(model, chunks.corpus)),
    }
    settings = with_engine(model, recipe, chunks.model_dump())
    return spec.make("measure.divergence", settings, made_from, engine=engine(engine_of(model, recipe)))


@cached
def perplexity_spec(model, recipe):
    chunks = measured_on(model, "perplexity")
    made_from = {
        "model": gguf_identity(model, recipe),
        "corpus": spec.digest(corpus_spec(model, chunks.corpus)),
    }
    settings = with_engine(model, recipe, chunks.model_dump())
    return spec.make("measure.perplexity", settings, made_from, engine=engine(engine_of(model, recipe)))


@cached
def speed_spec(model, recipe):
    speed = cfg.bench_of(model).speed
    if speed is None:
        raise QuantmillError(f"{model} has no speed", config_file, "give it one under bench")
    made_from = {"model": gguf_identity(model, recipe)}
    settings = with_engine(model, recipe, speed.model_dump())
    return spec.make("measure.speed", settings, made_from, engine=engine(engine_of(model, recipe)))


@cached
def served_spec(model, recipe):
    served = cfg.bench_of(model).served
    if served is None:
        raise QuantmillError(f"{model} has no served", config_file, "give it one under bench")
    made_from = {
        "model": gguf_identity(model, recipe),
        "server": [file_sha256(path) for path in servers_of(model)],
    }
    settings = served.model_dump(exclude={"server"})
    return spec.make("serve.measure", settings, made_from, engine=engine_generating(model, recipe))


@cached
def humaneval_spec(model, recipe):
    wanted = evaluated_by_code(model)
    made_from = {
        "model": gguf_identity(model, recipe),
        "problems": file_sha256(str(wanted.file())),
    }
    return spec.make(
        "evaluate.humaneval", wanted.settings, made_from, engine=engine_generating(model, recipe)
    )


@cached
def tasks_spec(model, recipe):
    wanted = evaluated_by_tasks(model)
    made_from = {
        "model": gguf_identity(model, recipe),
        "files": {name: file_sha256(path) for name, path in files_of_tasks(model).items()},
    }
    settings = wanted.model_dump() | {"lm-eval": version("lm-eval")}
    return spec.make("evaluate.tasks", settings, made_from, engine=engine_generating(model, recipe))


@cached
def sensitivity_plot_spec(model):
    return spec.make("card.maps", {}, {"sensitivity": spec.digest(damages_spec(model))})


@cache
def own_version():
    """quantmill's version; it need not be installed."""
    project = tomllib.loads(Path(workflow.basedir, "pyproject.toml").read_text("utf-8"))
    return project["project"]["version"]


def rival_facts(rival):
    """What the card is told of another model on the same disk."""
    return {"name": rival.name, "source": rival.source, "path": rival_path(rival)}


def rival_digest(rival):
    """Identity of another model's figures: of the files, or of the specs that this run makes them by."""
    if rival.model is None:
        return spec.digest([file_sha256(path) for path in rival_files(rival)])
    recipes = cfg.recipes_of(rival.model)
    specs = [quantize_spec(rival.model, recipe) for recipe in recipes]
    if cfg.bench_of(rival.model).kld:
        specs += [divergence_spec(rival.model, recipe) for recipe in recipes]
    if cfg.bench_of(rival.model).humaneval:
        specs += [humaneval_spec(rival.model, recipe) for recipe in recipes]
    return spec.digest([spec.digest(one) for one in specs])


# What the card takes from the config as it stands; the publisher's texts and other models come in apart.
CARD_FIELDS = {
    "license",
    "license_name",
    "license_link",
    "base_model",
    "title",
    "language",
    "tags",
    "pipeline_tag",
    "library_name",
    "datasets",
    "quantized_by",
}


@cached
def parts_spec(model):
    recipes = list(cfg.recipes_of(model))
    settings = {"model": model, "recipes": recipes, "split": cfg.publish_of(model).split_bytes}
    made_from = {"quants": [spec.digest(quantize_spec(model, recipe)) for recipe in recipes]}
    return spec.make("publish.cut", settings, made_from)


def origin_of(model):
    """The name of the source's file, and where it is from, in words."""
    source = cfg.models[model].source
    words = ""
    if isinstance(source, PackageSource):
        words = f"of the Python package {source.package}"
    elif isinstance(source, user.HubSource):
        words = f"of {source.hf} at {source.revision[:12]}"
    elif isinstance(source, user.CheckpointSource):
        words = (
            f"made of the checkpoint {Path(source.checkpoint).resolve().name} by llama.cpp's own converter"
        )
    return {"file": os.path.basename(source_of(model)[0]), "from": words}


@cached
def card_spec(model):
    bench, recipes, card = cfg.bench_of(model), list(cfg.recipes_of(model)), cfg.models[model].card
    rows = rows_of(model)
    generating = [row for row in rows if served_by(model, row)]
    settings = {
        "model": model,
        "source": origin_of(model),
        "recipes": recipes,
        "card": card.model_dump(include=CARD_FIELDS, exclude_none=True)
        | {field: words for field, (_, words) in card.words.items()}
        | {"iso_disk": [rival_facts(rival) for rival in card.iso_disk]},
        "repo": cfg.repository_of(model),
        "withhold": cfg.publish_of(model).withhold,
        "include": cfg.publish_of(model).include,
        "imatrix": cfg.imatrix_of(model) is not None,
        "kld": bench.kld is not None,
        "perplexity": bench.perplexity is not None,
        "speed": bench.speed is not None,
        **{what: getattr(bench, what) is not None for what in ("served", "humaneval", "tasks")},
        "sensitivity": cfg.sensitivity_of(model) is not None,
        "fits": {name: {"gate": recipe_of(model, name).gate} for name in recipes if fitted(model, name)},
        "toolchain": {"quantmill": own_version(), "llama-cpp-python": version("llama-cpp-python")},
    }
    engines = {recipe: engine_of(model, recipe) for recipe in recipes}
    if "ik" in engines.values():
        settings["engines"] = engines
        settings["toolchain"]["ik-llama-cpp-python"] = version("ik-llama-cpp-python")
    made_from = {
        "template": spec.digest([file_sha256(str(path)) for path in template.FILES]),
        "check": spec.digest(check_spec(model)),
        "manifest": spec.digest(manifest_spec(model)),
        "corpora": [spec.digest(corpus_spec(model, corpus)) for corpus in cfg.corpora_of(model)],
        "imatrix": [spec.digest(imatrix_spec(model)) for _ in imatrix_of(model)],
        "sensitivity": [spec.digest(damages_spec(model)) for _ in sensitivities_of(model)[:1]],
        "memory": spec.digest(memory_spec(model)),
        "quants": [spec.digest(quantize_spec(model, recipe)) for recipe in recipes],
        "kld": [spec.digest(divergence_spec(model, row)) for row in rows if bench.kld],
        "perplexity": [spec.digest(perplexity_spec(model, row)) for row in rows if bench.perplexity],
        "speed": [spec.digest(speed_spec(model, row)) for row in rows if bench.speed],
        "served": [spec.digest(served_spec(model, row)) for row in generating if bench.served],
        "rivals": [rival_digest(rival) for rival in card.iso_disk],
    }
    if settings["repo"]:
        settings["parts"] = True
        made_from["parts"] = spec.digest(parts_spec(model))
    if bench.humaneval:
        made_from["humaneval"] = [spec.digest(humaneval_spec(model, row)) for row in generating]
    if bench.tasks:
        made_from["tasks"] = [spec.digest(tasks_spec(model, row)) for row in generating]
    return spec.make("card.write", settings, made_from)


def publish_spec():
    models = {
        model: cfg.publish_of(model).model_dump(include={"private", "revision", "include", "overwrite"})
        | {
            "repo": cfg.repository_of(model),
            "split": cfg.publish_of(model).split_bytes,
            "recipes": list(cfg.recipes_of(model)),
            "measured": [
                os.path.relpath(path, RESULTS / model) for path in measured_in(model) + samples_of(model)
            ],
        }
        for model in PUBLISHED
    }
    if not models:
        with refusing():
            raise QuantmillError(
                "no repository to publish in",
                config_file,
                'add publish: {repo: "organisation/{model}-GGUF"}',
            )
    return spec.make("publish.upload", {"confirm": CONFIRMED, "models": models}, {})


@cached
def checkpoint_card_spec(model, recipe):
    settings = {
        "model": model,
        "card": given.models[model].card.model_dump(include=CARD_FIELDS, exclude_none=True),
        "toolchain": {"quantmill": own_version()},
    }
    made_from = {
        "template": file_sha256(CHECKPOINT_TEMPLATE),
        "export": spec.digest(export_spec(model, recipe)),
    }
    return spec.make("card.checkpoint", settings, made_from)
