"""``lorada compare``: which method to take for rows of one's own, or for a benchmark.

What was asked for (``spec.py``) and the rows (``comparison_rows.py``) become a plan
(``make_plan.py``, kept as ``stored_plan.py`` says), whose methods have sizes within a budget
(``size_for.py``). From it follow the jobs (``trainings.py``): a search for a learning rate
(``learning_rate.py``, by the rule of ``rate_rule.py``) and the final runs, which ``until.py`` may
cut short. ``jobs/`` has what runs jobs, ``run.py`` all of it in its order, ``read_results.py`` what
is stored of it, and ``report/`` what is shown; ``forecast.py`` says before what it would take. The
decision itself is in ``lorada.decision``.
"""
