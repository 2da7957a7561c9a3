"""Image classification with vision transformers: one training loop, and recipes of ingredients from several papers.

A recipe is a backbone and a list of ingredients (:class:`~atlas.tasks.image_classification.ingredients.Ingredient`);
an ingredient may rewrite the model, add loss terms, own a schedule, or act after training.
"""
