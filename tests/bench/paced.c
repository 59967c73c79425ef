/* The server of `tests.bench.paced`, for a machine with a compiler: the same on the wire, with a tenth of the CPU, so
   that on two cores the generator is what is measured. One thread; prints its port; ends when stdin does. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MOST_FDS 16384
#define BEGIN "data: {\"id\":\"chatcmpl-8f14e45fceea167a5a36dedd4bea2543\",\"object\":\"chat.completion.chunk\"," \
  "\"created\":1790000000,\"model\":\"paced\",\"choices\":["
#define CHOICE "{\"index\":0,\"logprobs\":null,\"finish_reason\":"
static const char HEAD[] =
  "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

typedef struct { int number, count; double *at; } Stream;                 /* at[0]: when it came */
typedef struct { char *in, *out; size_t in_n, in_cap, out_n; int open; } Client;

static Client clients[MOST_FDS];
static Stream *streams; static int n_streams, cap_streams;
static double *lates; static size_t n_lates, cap_lates;
static struct { double due; int fd, left, stream; double gap; } active[MOST_FDS];   /* what is due next, by slot */
static int n_active, epoll_fd, timer_fd;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }

static void shut(int fd) {
  for (int i = 0; i < n_active; i++) if (active[i].fd == fd) active[i--] = active[--n_active];
  free(clients[fd].in); free(clients[fd].out); memset(&clients[fd], 0, sizeof(Client)); close(fd);
}

static void want(int fd, int out) {
  struct epoll_event e = {EPOLLIN | (out ? EPOLLOUT : 0), {.fd = fd}}; epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
}

static void put(int fd, const char *data, size_t n) {                     /* to the kernel at once, the rest as it can */
  Client *c = &clients[fd];
  if (!c->out_n) {
    ssize_t sent = write(fd, data, n);
    if (sent < 0 && errno != EAGAIN) return;                              /* the read will tell */
    if (sent > 0) { data += sent; n -= sent; }
    if (n) want(fd, 1);
  }
  if (!n) return;
  c->out = realloc(c->out, c->out_n + n); memcpy(c->out + c->out_n, data, n); c->out_n += n;
}

static void flush(int fd) {
  Client *c = &clients[fd];
  ssize_t sent = write(fd, c->out, c->out_n);
  if (sent > 0) { memmove(c->out, c->out + sent, c->out_n - sent); c->out_n -= sent; }
  if (!c->out_n) want(fd, 0);
}

static size_t chunk(char *to, const char *text) { return sprintf(to, "%zx\r\n%s\r\n", strlen(text), text); }

static double field(const char *body, const char *name) {
  const char *at = strstr(body, name); return at ? atof(at + strlen(name)) : 0;
}

static int later(const void *a, const void *b) { double d = *(double *)a - *(double *)b; return (d > 0) - (d < 0); }

static void tell(int fd) {                                                /* the stamps, and forget them */
  char *text; size_t n; FILE *to = open_memstream(&text, &n);
  qsort(lates, n_lates, sizeof(double), later);
  double shares[] = {0.5, 0.99, 0.999};
  fprintf(to, "{\"late\":[");
  for (int i = 0; i < 3; i++) fprintf(to, "%s%.9f", i ? "," : "", n_lates ? lates[(size_t)(shares[i] * (n_lates - 1))] : 0);
  fprintf(to, "],\"streams\":{");
  for (int i = 0; i < n_streams; i++) {
    fprintf(to, "%s\"%d\":[", i ? "," : "", streams[i].number);
    for (int k = 0; k < streams[i].count; k++) fprintf(to, "%s%.9f", k ? "," : "", streams[i].at[k]);
    fprintf(to, "]"); free(streams[i].at);
  }
  fprintf(to, "}}"); fclose(to);
  char head[99]; put(fd, head, sprintf(head, "HTTP/1.1 200 OK\r\ncontent-length: %zu\r\n\r\n", n));
  put(fd, text, n); free(text); n_streams = 0; n_lates = 0;
}

static void begin(int fd, const char *body) {
  static int number; static char first[1024]; static size_t first_n;
  if (!first_n) {
    memcpy(first, HEAD, sizeof HEAD - 1);
    first_n = sizeof HEAD - 1 + chunk(first + sizeof HEAD - 1,
      BEGIN CHOICE "null,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n");
  }
  if (n_streams == cap_streams) streams = realloc(streams, (cap_streams = cap_streams * 2 + 64) * sizeof(Stream));
  double came = now(); int tokens = (int)field(body, "\"max_tokens\":");
  Stream s = {++number, 1, malloc((tokens + 1) * sizeof(double))};
  s.at[0] = came; streams[n_streams] = s;
  put(fd, first, first_n);
  active[n_active].due = came + field(body, "\"ttft_ms\":") / 1000; active[n_active].gap = field(body, "\"itl_ms\":") / 1000;
  active[n_active].fd = fd; active[n_active].left = tokens; active[n_active++].stream = n_streams++;
}

static void ring(void) {
  static char token[512]; static size_t token_n;
  if (!token_n) token_n = chunk(token, BEGIN CHOICE "null,\"delta\":{\"content\":\" token\"}}]}\n\n");
  for (int i = 0; i < n_active; i++) {
    double at = now();
    if (active[i].due > at) continue;
    Stream *s = &streams[active[i].stream];
    s->at[s->count++] = at;
    if (n_lates == cap_lates) lates = realloc(lates, (cap_lates = cap_lates * 2 + 4096) * sizeof(double));
    lates[n_lates++] = at - active[i].due;
    put(active[i].fd, token, token_n);
    active[i].due += active[i].gap;
    if (--active[i].left) continue;
    char text[1024], last[2048]; size_t n = chunk(last, BEGIN CHOICE "\"length\",\"delta\":{}}]}\n\n");
    sprintf(text, BEGIN "],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d}}\n\n", s->number, s->count - 1);
    n += chunk(last + n, text); n += chunk(last + n, "data: [DONE]\n\n"); n += sprintf(last + n, "0\r\n\r\n");
    put(active[i].fd, last, n);
    active[i--] = active[--n_active];
  }
}

static void set_timer(void) {
  double next = 0;
  for (int i = 0; i < n_active; i++) if (!next || active[i].due < next) next = active[i].due;
  struct itimerspec when = {{0, 0}, {(time_t)next, (long)((next - (time_t)next) * 1e9)}};
  timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void come(int fd) {
  Client *c = &clients[fd];
  if (c->in_cap - c->in_n < 65536) c->in = realloc(c->in, c->in_cap = c->in_cap * 2 + 131072);
  ssize_t got = read(fd, c->in + c->in_n, c->in_cap - c->in_n - 1);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) { shut(fd); return; }
  c->in_n += got; c->in[c->in_n] = 0;
  char *end = strstr(c->in, "\r\n\r\n");
  if (!end) return;
  char *length = strcasestr(c->in, "content-length:");
  size_t body = length && length < end ? (size_t)atol(length + 15) : 0;
  if ((size_t)(c->in + c->in_n - end) < 4 + body) return;
  c->in_n = 0;
  if (!strncmp(c->in, "GET", 3)) tell(fd); else begin(fd, end + 4);
}

int main(void) {
  struct sockaddr_in me = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof me; int one = 1, door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (bind(door, (void *)&me, size) || listen(door, 4096)) return 1;
  getsockname(door, (void *)&me, &size); printf("%d\n", ntohs(me.sin_port)); fflush(stdout);
  epoll_fd = epoll_create1(0); timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  for (int *fd = (int[]){0, door, timer_fd, -1}; *fd >= 0; fd++) {
    struct epoll_event e = {EPOLLIN, {.fd = *fd}}; epoll_ctl(epoll_fd, EPOLL_CTL_ADD, *fd, &e);
  }
  signal(SIGPIPE, SIG_IGN);
  for (;;) {
    struct epoll_event events[512]; int n = epoll_wait(epoll_fd, events, 512, -1); char nothing[512];
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == 0) { if (read(0, nothing, sizeof nothing) <= 0) return 0; }
      else if (fd == timer_fd) { if (read(fd, nothing, 8) < 0) continue; }
      else if (fd == door) {
        int new; while ((new = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          if (new >= MOST_FDS) { close(new); continue; }
          setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); clients[new].open = 1;
          struct epoll_event e = {EPOLLIN, {.fd = new}}; epoll_ctl(epoll_fd, EPOLL_CTL_ADD, new, &e);
        }
      } else {
        if (events[i].events & EPOLLOUT) flush(fd);
        if (clients[fd].open && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) come(fd);
      }
    }
    ring(); set_timer();
  }
}
