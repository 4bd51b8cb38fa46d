/* A job that behaves as a test needs it:
 *   behave spin N        N threads use all the CPU they get
 *   behave stubborn      one thread does, and SIGTERM is ignored
 *   behave fork          a child and its child use CPU, in other process groups than their parent
 *   behave exit CODE MS  ends with CODE after MS milliseconds
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *spin(void *unused)
{
    volatile unsigned long turns = 0;
    (void)unused;
    for (;;)
        turns++;
    return NULL;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "spin") && argc == 3) {
        for (int i = 1; i < atoi(argv[2]); i++) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, spin, NULL))
                return 3;
        }
        spin(NULL);
    } else if (!strcmp(what, "stubborn")) {
        signal(SIGTERM, SIG_IGN);
        spin(NULL);
    } else if (!strcmp(what, "fork")) {
        if (fork() == 0) {
            setpgid(0, 0);
            if (fork() == 0)
                setpgid(0, 0);
        }
        spin(NULL);
    } else if (!strcmp(what, "exit") && argc == 4) {
        usleep((useconds_t)atoi(argv[3]) * 1000);
        return atoi(argv[2]);
    }
    return 2;
}
