"""How tests have XLA compile: fast rather than well, since compiling is what makes them slow.

Imports nothing.
"""

FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
