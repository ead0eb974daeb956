/* Ask the agent on this device for a prediction over its Unix socket, in C without libraries.
 *
 *   cc -std=c99 -Wall -Wextra -o predict predict.c
 *   ./predict SOCKET VALUE...
 *
 * The values are one sample, in the order of the schema's channels. Prints the agent's answer, which is JSON:
 * {"predictions": [{"id": ..., "label": ..., "name": ..., "confidence": ..., "package": ...}]}
 * A label goes the same way: POST /v1/labels {"of": ID, "label": CLASS}.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MOST = 1 << 16 };

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

/* Everything, or -1. */
static int send_all(int to, const char *text, size_t length) {
    while (length > 0) {
        ssize_t sent = write(to, text, length);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return -1;
        text += sent;
        length -= (size_t)sent;
    }
    return 0;
}

int main(int count, char **words) {
    static char body[MOST], request[MOST + 256], reply[MOST];
    if (count < 3) {
        fprintf(stderr, "usage: %s SOCKET VALUE...\n", words[0]);
        return 2;
    }
    size_t used = (size_t)snprintf(body, sizeof body, "{\"rows\": [[");
    for (int i = 2; i < count; i++) {
        char *end;
        double value = strtod(words[i], &end);
        if (*end != '\0' || used + 40 > sizeof body) {
            fprintf(stderr, "%s is no number, or there are too many\n", words[i]);
            return 2;
        }
        used += (size_t)snprintf(body + used, sizeof body - used, "%s%.9g", i > 2 ? ", " : "", value);
    }
    used += (size_t)snprintf(body + used, sizeof body - used, "]]}");

    struct sockaddr_un where = {.sun_family = AF_UNIX};
    if (strlen(words[1]) >= sizeof where.sun_path) {
        fprintf(stderr, "the path of the socket is too long\n");
        return 2;
    }
    strcpy(where.sun_path, words[1]);
    int agent = socket(AF_UNIX, SOCK_STREAM, 0);
    if (agent < 0 || connect(agent, (struct sockaddr *)&where, sizeof where) < 0) return fail(words[1]);

    int length = snprintf(request, sizeof request,
                          "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                          "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", used, body);
    if (send_all(agent, request, (size_t)length) < 0) return fail("send");

    size_t got = 0;
    for (;;) {
        ssize_t more = read(agent, reply + got, sizeof reply - 1 - got);
        if (more < 0 && errno == EINTR) continue;
        if (more < 0) return fail("receive");
        if (more == 0) break;
        got += (size_t)more;
        if (got == sizeof reply - 1) break;
    }
    close(agent);
    reply[got] = '\0';

    const char *content = strstr(reply, "\r\n\r\n");
    if (content == NULL) {
        fprintf(stderr, "the agent did not answer\n");
        return 1;
    }
    puts(content + 4);
    return strncmp(reply, "HTTP/1.1 200", 12) == 0 ? 0 : 1;
}
