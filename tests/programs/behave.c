/* A job that behaves as a test needs it:
 *   behave spin N        N threads use all the CPU they get
 *   behave polite        one thread does, and SIGTERM ends it with code 143, also where it is the first process
 *   behave stubborn      one thread does, and SIGTERM is ignored
 *   behave fork          a child and its child use CPU, in other process groups than their parent
 *   behave forks N       N processes come and go all the time, each for a few milliseconds
 *   behave escape        a grandchild in a session of its own uses CPU; its parents end after 0.3 s, with code 0
 *   behave flood         writes without end
 *   behave exit CODE MS  ends with CODE after MS milliseconds
 * What stands after that is not looked at: a test knows its own processes by it.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *spin(void *unused)
{
    volatile unsigned long turns = 0;
    (void)unused;
    for (;;)
        turns++;
    return NULL;
}

static void leave(int number)
{
    _exit(128 + number);
}

static void spin_for(long nanoseconds)
{
    struct timespec now, begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - begin.tv_sec) * 1000000000L + now.tv_nsec - begin.tv_nsec < nanoseconds);
    _exit(0);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "spin") && argc >= 3) {
        for (int i = 1; i < atoi(argv[2]); i++) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, spin, NULL))
                return 3;
        }
        spin(NULL);
    } else if (!strcmp(what, "polite")) {
        signal(SIGTERM, leave);
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
    } else if (!strcmp(what, "forks") && argc >= 3) {
        for (int alive = 0;;) {
            if (alive++ < atoi(argv[2])) {
                if (fork() == 0)
                    spin_for(5000000);
            } else if (wait(NULL) > 0) {
                alive -= 2;
            }
        }
    } else if (!strcmp(what, "flood")) {
        static char text[4096];
        memset(text, 'x', sizeof text);
        text[sizeof text - 1] = '\n';
        for (;;)
            if (write(1, text, sizeof text) < 0)
                return 3;
    } else if (!strcmp(what, "escape")) {
        if (fork() == 0) {
            setsid();
            if (fork() == 0)
                spin(NULL);
            return 0;
        }
        usleep(300000);
        return 0;
    } else if (!strcmp(what, "exit") && argc >= 4) {
        usleep((useconds_t)atoi(argv[3]) * 1000);
        return atoi(argv[2]);
    }
    return 2;
}
