// Stands in for llama.cpp's llama-server, which this repository does not have: the flags that the operator gives it, health, metrics
// and streamed completions behave as llama-server's do, and the text is the name of the model file over and over. As llama-server
// does, it refuses what it does not know, answers 503 while it loads, and ends at once when told to, whatever it is answering.
// While the model file says `broken`, its health is fine and no request is answered.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { LOAD_SECONDS = 3, TOKEN_MICROSECONDS = 25000, SLOTS_MOST = 64 };

static const char *model = NULL, *alias = "", *file = "";
static int slots = 1, port = 8080, with_metrics = 0;
static atomic_int loaded, processing, deferred;
static atomic_long predicted;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t freed = PTHREAD_COND_INITIALIZER;

static void end(int signal) {
  (void)signal;
  _exit(0);
}

static int put(int to, const char *text) {
  size_t left = strlen(text);
  while (left > 0) {
    ssize_t sent = send(to, text, left, MSG_NOSIGNAL);
    if (sent <= 0) return -1;
    text += sent, left -= (size_t)sent;
  }
  return 0;
}

static void answer(int to, const char *status, const char *kind, const char *body) {
  char head[256];
  snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status, kind,
           strlen(body));
  if (put(to, head) == 0) put(to, body);
}

static void metrics(int to) {
  char body[1024];
  snprintf(body, sizeof body,
           "# TYPE llamacpp:tokens_predicted_total counter\nllamacpp:tokens_predicted_total %ld\n"
           "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing %d\n"
           "# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred %d\n",
           atomic_load(&predicted), atomic_load(&processing), atomic_load(&deferred));
  answer(to, "200 OK", "text/plain; version=0.0.4", body);
}

// One token: the file's name. Our own worker puts its profile into `system_fingerprint`; so does this, for the sake of the readers.
static void chunk(char *into, size_t size, const char *finish) {
  snprintf(into, size,
           "{\"object\":\"text_completion\",\"model\":\"%s\",\"system_fingerprint\":\"fp_modelprofile_%s\","
           "\"choices\":[{\"index\":0,\"text\":\" %s\",\"finish_reason\":%s}]}",
           alias, file, file, finish);
}

static int broken(void) {
  char word[8] = "";
  FILE *opened = fopen(model, "r");
  if (opened && !fgets(word, sizeof word, opened)) word[0] = 0;
  if (opened) fclose(opened);
  return strncmp(word, "broken", 6) == 0;
}

static void complete(int to, const char *body) {
  if (broken()) {
    answer(to, "500 Internal Server Error", "application/json", "{\"error\":{\"message\":\"failed to decode\",\"code\":500}}");
    return;
  }
  const char *most = strstr(body, "\"max_tokens\":");
  int tokens = most ? atoi(most + strlen("\"max_tokens\":")) : 16;
  const char *stream = strstr(body, "\"stream\":");
  int streamed = stream && strncmp(stream + strlen("\"stream\":") + strspn(stream + strlen("\"stream\":"), " "), "true", 4) == 0;
  char data[1024], line[1100];
  atomic_fetch_add(&deferred, 1);
  pthread_mutex_lock(&turn);
  while (atomic_load(&processing) >= slots) pthread_cond_wait(&freed, &turn);
  atomic_fetch_add(&processing, 1);
  pthread_mutex_unlock(&turn);
  atomic_fetch_sub(&deferred, 1);
  int gone = streamed && put(to, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
  for (int token = 0; token < tokens && !gone; token++) {
    usleep(TOKEN_MICROSECONDS);
    atomic_fetch_add(&predicted, 1);
    if (!streamed) continue;
    chunk(data, sizeof data, token + 1 < tokens ? "null" : "\"length\"");
    snprintf(line, sizeof line, "data: %s\n\n", data);
    gone = put(to, line);
  }
  if (streamed && !gone) {
    put(to, "data: [DONE]\n\n");
  } else if (!streamed) {
    chunk(data, sizeof data, "\"length\"");
    answer(to, "200 OK", "application/json", data);
  }
  pthread_mutex_lock(&turn);
  atomic_fetch_sub(&processing, 1);
  pthread_cond_signal(&freed);
  pthread_mutex_unlock(&turn);
}

static void *serve(void *argument) {
  int from = (int)(long)argument;
  char text[65536];
  size_t have = 0, want = 0;
  char *body = NULL;
  while (have + 1 < sizeof text && (!body || have < want)) {
    ssize_t came = recv(from, text + have, sizeof text - 1 - have, 0);
    if (came <= 0) break;
    have += (size_t)came;
    text[have] = 0;
    if (!body && (body = strstr(text, "\r\n\r\n"))) {
      body += 4;
      const char *length = strcasestr(text, "content-length:");
      want = (size_t)(body - text) + (length && length < body ? strtoul(length + strlen("content-length:"), NULL, 10) : 0);
    }
  }
  if (!body) {
    // It said nothing.
  } else if (strncmp(text, "GET /metrics ", 13) == 0 && with_metrics) {
    metrics(from);
  } else if (!atomic_load(&loaded)) {
    answer(from, "503 Service Unavailable", "application/json",
           "{\"error\":{\"message\":\"Loading model\",\"type\":\"unavailable_error\",\"code\":503}}");
  } else if (strncmp(text, "GET /health ", 12) == 0) {
    answer(from, "200 OK", "application/json", "{\"status\":\"ok\"}");
  } else if (strncmp(text, "POST /v1/completions ", 21) == 0) {
    complete(from, body);
  } else {
    answer(from, "404 Not Found", "application/json", "{\"error\":{\"message\":\"File Not Found\",\"code\":404}}");
  }
  shutdown(from, SHUT_WR);
  close(from);
  return NULL;
}

static void *load(void *argument) {
  (void)argument;
  sleep(LOAD_SECONDS);
  atomic_store(&loaded, 1);
  return NULL;
}

static void begin(void *(*what)(void *), void *argument) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, what, argument) == 0) pthread_detach(thread);
}

static void read_flags(int count, char **words) {
  for (int at = 1; at < count; at++) {
    const char *flag = words[at], *value = at + 1 < count ? words[at + 1] : "";
    if (strcmp(flag, "--metrics") == 0) {
      with_metrics = 1;
      continue;
    }
    if (strcmp(flag, "-m") == 0) model = value;
    else if (strcmp(flag, "--alias") == 0) alias = value;
    else if (strcmp(flag, "--port") == 0) port = atoi(value);
    else if (strcmp(flag, "-np") == 0) slots = atoi(value);
    else if (strcmp(flag, "--host") && strcmp(flag, "-c") && strcmp(flag, "--cache-type-k") && strcmp(flag, "--cache-type-v")) {
      fprintf(stderr, "error: invalid argument: %s\n", flag);
      exit(1);
    }
    at++;
  }
  if (slots < 1 || slots > SLOTS_MOST) slots = 1;
}

int main(int count, char **words) {
  signal(SIGTERM, end);
  signal(SIGINT, end);
  read_flags(count, words);
  if (!model || access(model, R_OK) != 0) {
    fprintf(stderr, "error: failed to load model '%s'\n", model ? model : "");
    return 1;
  }
  file = strrchr(model, '/') ? strrchr(model, '/') + 1 : model;
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = INADDR_ANY};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 128) != 0) {
    perror("error: cannot listen");
    return 1;
  }
  begin(load, NULL);
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client >= 0) begin(serve, (void *)(long)client);
  }
}
