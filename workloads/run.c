/* The launcher, with the command line of the PARSEC images:
 *
 *     ./run -a run -S parsec|splash2x -p KERNEL -i test|simlarge|native -n THREADS
 *
 * It becomes the kernel of that name which lies beside it, so that an image needs no shell and the kernel is
 * process 1 of its container.
 */
#include "common.h"

static const char *const SPLASH2X[] = {"barnes", "fft", "radix"};

static const char *suite_of(const char *kernel)
{
    for (size_t i = 0; i < sizeof SPLASH2X / sizeof *SPLASH2X; i++)
        if (!strcmp(kernel, SPLASH2X[i]))
            return "splash2x";
    return "parsec";
}

static _Noreturn void usage(void)
{
    die(2, "usage: ./run -a run -S parsec|splash2x -p KERNEL -i test|simlarge|native -n THREADS");
}

static void block_signals(void)
{
    sigset_t both;
    sigemptyset(&both);
    sigaddset(&both, SIGTERM);
    sigaddset(&both, SIGINT);
    sigprocmask(SIG_BLOCK, &both, NULL); /* the kernel's handler takes them, see die_on_signals() */
}

int main(int argc, char **argv)
{
    char *action = NULL, *suite = NULL, *kernel = NULL, *size = NULL, *count = NULL;
    char path[PATH_MAX];
    int option;

    program = "run";
    block_signals();
    opterr = 0;
    while ((option = getopt(argc, argv, "a:S:p:i:n:")) != -1)
        switch (option) {
        case 'a': action = optarg; break;
        case 'S': suite = optarg; break;
        case 'p': kernel = optarg; break;
        case 'i': size = optarg; break;
        case 'n': count = optarg; break;
        default: usage();
        }
    if (optind != argc || !action || !suite || !kernel || !size || !count)
        usage();
    if (strcmp(action, "run"))
        die(2, "-a %s: the only action is run", action);
    if (strcmp(suite, "parsec") && strcmp(suite, "splash2x"))
        die(2, "-S %s: give parsec or splash2x", suite);
    if (kernel[strspn(kernel, "abcdefghijklmnopqrstuvwxyz")] || !*kernel || !strcmp(kernel, "run"))
        die(2, "-p %s: this is no kernel's name", kernel);
    if (strcmp(suite, suite_of(kernel)))
        die(2, "-p %s: not in %s, give -S %s", kernel, suite, suite_of(kernel));

    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0)
        die(1, "/proc/self/exe: %s", strerror(errno));
    path[length] = '\0';
    char *name = strrchr(path, '/') + 1;
    if ((size_t)snprintf(name, sizeof path - (size_t)(name - path), "%s", kernel) >= sizeof path - (size_t)(name - path))
        die(1, "%s: the path is too long", path);
    char *arguments[] = {path, "-i", size, "-n", count, NULL};
    execv(path, arguments);
    die(2, "-p %s: %s", kernel, errno == ENOENT ? "there is no such kernel" : strerror(errno));
}
