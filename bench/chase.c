/* What it costs this machine to look at memory that is in none of its caches: prints the nanoseconds that
 * one step takes of a walk through a random cycle of so many MiB, each step on a cache line of its own. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LINE 64
#define STEPS 4000000

int main(int count, char **arguments)
{
    size_t lines = (count > 1 ? strtoul(arguments[1], NULL, 10) : 1024) * (1 << 20) / LINE;
    char *memory = aligned_alloc(LINE, lines * LINE);
    uint32_t *order = malloc(lines * sizeof *order);
    uint64_t random = 88172645463325252u;
    struct timespec from, to;
    if (!memory || !order || lines < 2)
        return 1;
    for (size_t i = 0; i < lines; i++)
        order[i] = (uint32_t)i;
    for (size_t i = lines - 1; i > 0; i--) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        size_t other = random % (i + 1);
        uint32_t kept = order[i];
        order[i] = order[other], order[other] = kept;
    }
    for (size_t i = 0; i < lines; i++)
        *(char **)(memory + (size_t)order[i] * LINE) = memory + (size_t)order[(i + 1) % lines] * LINE;
    char *at = memory;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (size_t i = 0; i < STEPS; i++)
        at = *(char **)at;
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.1f\n", ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) / STEPS + (at == NULL));
    return 0;
}
