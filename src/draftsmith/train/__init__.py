"""Making drafts: recipes of stages, each from a checkpoint folder (or GGUF file) to a new folder with a stage.json.

    recipe = read_recipe(Path("recipe.toml"), ["sft.learning_rate=1e-5"])
    for stage in recipe.stages: run_stage(recipe, stage)          # runner.run_recipe does this

Data: files -> rows -> conversations -> ids + loss mask (``text`` formats) -> TokenStore -> bins of whole documents ->
Batch. Learning: Batch -> Objective (sft, distill, dpo) -> loop.train -> checkpoints -> a saved folder.

The modules that need torch or transformers (extra ``train``) import them themselves; reading recipes and data and
showing what would be trained on (``audit``) needs neither.
"""
