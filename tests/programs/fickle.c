/* Something like a memcached whose threads come and go all the time: it answers `version`, `stats` and `mn`.
 *   fickle PORT
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void *come_and_go(void *unused)
{
    struct timespec while_s = {0, 3000000};
    (void)unused;
    nanosleep(&while_s, NULL);
    return NULL;
}

static void *churn(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_t threads[8];
        for (int i = 0; i < 8; i++)
            if (pthread_create(&threads[i], NULL, come_and_go, NULL))
                _exit(3);
        for (int i = 0; i < 8; i++)
            pthread_join(threads[i], NULL);
    }
}

static void *serve(void *argument)
{
    int client = (int)(long)argument;
    char text[4096];
    for (ssize_t n; (n = read(client, text, sizeof text - 1)) > 0;) {
        text[n] = 0;
        const char *answer = "VERSION 1.6\r\n";
        if (strstr(text, "mn\r"))
            answer = "MN\r\n";
        if (strstr(text, "stats"))
            answer = "STAT pid 1\r\nSTAT cmd_get 1\r\nSTAT cmd_set 1\r\nSTAT curr_connections 1\r\nSTAT threads 4\r\nEND\r\n";
        if (write(client, answer, strlen(answer)) < 0)
            break;
    }
    close(client);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    pthread_t thread;
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        return 2;
    pthread_create(&thread, NULL, churn, NULL);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client >= 0)
            pthread_create(&thread, NULL, serve, (void *)(long)client), pthread_detach(thread);
    }
}
