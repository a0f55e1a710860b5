/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The privileged side of a recorder without privileges: attaches the XDP program to IFACE, opens the devices, and
 * hands descriptors to processes of user UID that ask at the Unix socket PATH: a socket for each queue of IFACE.
 *
 *     hand-over OBJECT PATH UID IFACE DEVICE[,DEVICE...] [PORT]     OBJECT: unified_xdp.bpf.o; until Ctrl-C
 *
 * A request and an answer are one message each (SOCK_SEQPACKET), as between the AF_XDP device plugin for Kubernetes
 * and its pods; descriptors come with the answer (SCM_RIGHTS). What the plugin has not is marked.
 *
 *     /connect, NAME          /host_ok
 *     /version                0.1
 *     /xsk_map_fd, IFACE      /fd_ack and the map of AF_XDP sockets, or /fd_nak
 *     /queues, IFACE     (*)  how many receive queues it has, as a number
 *     /xsk_fd, IFACE     (*)  /fd_ack and a new AF_XDP socket: for who has no CAP_NET_RAW. One for each queue
 *     /devices           (*)  how many devices there are, as a number
 *     /device_fd, N      (*)  /fd_ack and device N; without a number the first one
 *     /fin                    /fin_ack, the end
 *     anything else           /error
 *
 * It serves many clients at once and waits for none. A connection ends after 2 s without a request, after 5 s, after
 * 64 requests, and when the client does not read its answers. SIGINT, SIGTERM and SIGHUP act at once.
 *
 * It must run in the network namespace of IFACE, and go on while there are recorders: the program goes with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <xdp/libxdp.h>
#include "unified_xdp.h"

/* A context of the library has no more. */
#define QUEUES 64
#define DEVICES 16
/* Connections at once, and requests in one of them. A recorder needs one connection, and five requests and one for each queue
   and device. */
#define CLIENTS 64
#define REQUESTS (8 + QUEUES + DEVICES)
/* A connection ends when its client was quiet for so long, and whatever it says, after its lifetime. */
#define PATIENCE_MS 2000
#define LIFETIME_MS 5000

static const char *iface, *path;
static int map_fd = -1, device_fds[DEVICES];
static unsigned int device_count;

static int complain(const char *what, const char *on, int error)
{
	fprintf(stderr, "hand-over: %s %s: %s\n", what, on, strerror(error));
	return -1;
}

/* How many receive queues the interface has now. A driver that does not say so has one. */
static unsigned int count_queues(void)
{
	struct ethtool_channels channels = { .cmd = ETHTOOL_GCHANNELS };
	struct ifreq request = { .ifr_data = (void *)&channels };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	unsigned int count = 1;

	strncpy(request.ifr_name, iface, IFNAMSIZ - 1);
	if (fd >= 0 && ioctl(fd, SIOCETHTOOL, &request) == 0 && channels.rx_count + channels.combined_count > 0)
		count = channels.rx_count + channels.combined_count;
	if (fd >= 0)
		close(fd);
	return count;
}

/* Opens a device. O_EXCL: a block device that is mounted is refused. For others it says nothing without O_CREAT. */
static int open_device(const char *name)
{
	struct stat one, other;
	int fd = open(name, O_RDWR | O_DIRECT | O_EXCL | O_CLOEXEC);

	/* Passthrough nodes are character devices and have no O_DIRECT. */
	if (fd < 0 && errno == EINVAL)
		fd = open(name, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &one) < 0)
		return complain("opening", name, errno);
	for (unsigned int i = 0; i < device_count; i++)
		if (fstat(device_fds[i], &other) == 0 && one.st_ino == other.st_ino && one.st_dev == other.st_dev) {
			close(fd);
			return complain("opening, a second time,", name, EEXIST);
		}
	device_fds[device_count++] = fd;
	return 0;
}

/* One device, or several with commas between them, unless that is a name itself. */
static int open_devices(char *names)
{
	char *rest = NULL, *name;

	if (!strchr(names, ',') || !access(names, F_OK))
		return open_device(names);
	for (name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
		if (device_count == DEVICES)
			return complain("opening", name, E2BIG);
		if (open_device(name) < 0)
			return -1;
	}
	return 0;
}

/* When this process started, in the kernel's ticks since boot. */
static __u64 started(void)
{
	unsigned long long ticks = 0;
	char line[1024];
	FILE *file = fopen("/proc/self/stat", "r");
	const char *behind = file && fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;

	if (!behind || sscanf(behind, ") %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
			      &ticks) != 1)
		ticks = 0;
	if (file)
		fclose(file);
	return ticks;
}

/*
 * The library does not take over a program whose owner lives. This is how it knows, also in another PID namespace: the
 * kernel lets go of the socket's name when this process ends.
 */
static struct unified_settings sign(void)
{
	struct unified_settings settings = { .owner_pid = getpid(), .owner_start = started() };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct stat namespace;
	__u64 token;
	int len;

	if (stat("/proc/self/ns/pid", &namespace) == 0)
		settings.owner_pid_namespace = namespace.st_ino;
	if (fd < 0 || getrandom(&token, sizeof(token), 0) != sizeof(token))
		return settings;
	token |= 1;
	/* An abstract name: a zero byte, and as long as it is. */
	len = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "unified-xdp-%016llx", (unsigned long long)token);
	if (bind(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + len) == 0)
		settings.owner_token = token;
	return settings;
}

static int set(struct bpf_object *object, const char *map, __u32 key, const void *value)
{
	int fd = bpf_object__find_map_fd_by_name(object, map);

	if (fd < 0 || bpf_map_update_elem(fd, &key, value, 0) < 0)
		return complain("writing the map", map, errno);
	return 0;
}

static struct xdp_program *attach(const char *file, int ifindex, __u32 port, enum xdp_attach_mode *mode)
{
	struct unified_settings settings = sign();
	struct xdp_program *program = xdp_program__open_file(file, "xdp.frags", NULL);
	int error = libxdp_get_error(program);
	__u8 yes = 1;

	if (error) {
		complain("opening", file, -error);
		return NULL;
	}
	for (*mode = XDP_MODE_NATIVE; (error = xdp_program__attach(program, ifindex, *mode, 0)) != 0; *mode = XDP_MODE_SKB)
		if (*mode == XDP_MODE_SKB)
			break;
	if (error) {
		complain("attaching the XDP program to", iface, -error);
		xdp_program__close(program);
		return NULL;
	}
	map_fd = bpf_object__find_map_fd_by_name(xdp_program__bpf_obj(program), "unified_xsks");
	if (map_fd < 0 || set(xdp_program__bpf_obj(program), "unified_set", 0, &settings) < 0 ||
	    set(xdp_program__bpf_obj(program), "unified_ports", port, &yes) < 0) {
		xdp_program__detach(program, ifindex, *mode, 0);
		xdp_program__close(program);
		return NULL;
	}
	return program;
}

/* Only UID may connect: the socket is made closed to all others, before anybody can reach it. */
/* What stands at `path` now may be another one's. */
static struct stat made;

static void remove_socket(void)
{
	struct stat there;

	if (lstat(path, &there) == 0 && there.st_dev == made.st_dev && there.st_ino == made.st_ino)
		unlink(path);
}

static int listen_at(uid_t uid)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t mask = umask(0177);
	int ret;

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		ret = -1;
	} else {
		strcpy(address.sun_path, path);
		ret = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&address, sizeof(address));
	}
	umask(mask);
	if (ret < 0)
		return complain("listening at", path, errno);
	if (lstat(path, &made) < 0 || lchown(path, uid, -1) < 0 || listen(fd, SOMAXCONN) < 0) {
		ret = errno;
		remove_socket();
		return complain("listening at", path, ret);
	}
	return fd;
}

/*
 * One connection. No call waits for one: each is asked only when it has something to say, an answer that finds no room
 * ends it, and so do its two limits of time. So no client keeps another one, or the end, waiting.
 */
struct client {
	int fd;
	int connected;
	unsigned int requests;
	long long accepted, heard; /* ms */
};

static struct client clients[CLIENTS];
static unsigned int client_count;

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* A line for whoever reads along. If nobody does, the pipe is full some day: then the line is left out. */
static void say(const char *format, ...)
{
	struct pollfd out = { .fd = STDOUT_FILENO, .events = POLLOUT };
	va_list list;

	if (poll(&out, 1, 0) != 1 || !(out.revents & POLLOUT))
		return;
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	fflush(stdout);
}

static int answer(int peer, const char *text, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .space = { 0 } };
	struct iovec words = { .iov_base = (char *)text, .iov_len = strlen(text) };
	struct msghdr message = { .msg_iov = &words, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *header;

		message.msg_control = control.space;
		message.msg_controllen = sizeof(control.space);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	/* A client that does not read its answers has no room for this one: the end of its connection. */
	return sendmsg(peer, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

static int hand(int peer, const char *what, int fd)
{
	int error = errno, ret = answer(peer, fd < 0 ? "/fd_nak" : "/fd_ack", fd);

	say("%s: %s\n", what, fd < 0 ? strerror(error) : ret < 0 ? "the client does not take it" : "handed over");
	return ret;
}

/* The word after the comma, if it names our interface. */
static int ours(const char *argument)
{
	while (*argument == ' ')
		argument++;
	return !strcmp(argument, iface);
}

static int answer_number(int peer, unsigned int number)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", number);
	return answer(peer, text, -1);
}

/* The descriptor of the device with this number. */
static int device_of(const char *number)
{
	char *end;
	unsigned long i = strtoul(number, &end, 10);

	errno = ENODEV;
	return *end || i >= device_count ? -1 : device_fds[i];
}

/* Takes one request, if one is there. -1: the connection ends. */
static int serve(struct client *client)
{
	char request[256], *argument;
	ssize_t got = recv(client->fd, request, sizeof(request) - 1, MSG_DONTWAIT | MSG_TRUNC);
	int ret;

	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	if (got == 0 || ++client->requests > REQUESTS)
		return -1;
	client->heard = now_ms();
	if ((size_t)got >= sizeof(request))
		return answer(client->fd, "/error", -1);
	request[got] = 0;
	if ((argument = strchr(request, ',')) != NULL)
		*argument++ = 0;
	else
		argument = request + strlen(request);
	if (!strcmp(request, "/connect")) {
		client->connected = 1;
		return answer(client->fd, "/host_ok", -1);
	}
	if (!strcmp(request, "/fin")) {
		answer(client->fd, "/fin_ack", -1);
		return -1;
	}
	if (!strcmp(request, "/version"))
		return answer(client->fd, "0.1", -1);
	if (!client->connected)
		return answer(client->fd, "/error", -1);
	if (!strcmp(request, "/xsk_map_fd")) {
		errno = ENODEV;
		return hand(client->fd, "map of sockets", ours(argument) ? map_fd : -1);
	}
	if (!strcmp(request, "/xsk_fd")) {
		int fd;

		errno = ENODEV;
		fd = ours(argument) ? socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0) : -1;
		ret = hand(client->fd, "socket", fd);
		if (fd >= 0)
			close(fd);
		return ret;
	}
	if (!strcmp(request, "/queues"))
		return ours(argument) ? answer_number(client->fd, count_queues()) : answer(client->fd, "/error", -1);
	if (!strcmp(request, "/devices"))
		return answer_number(client->fd, device_count);
	if (!strcmp(request, "/device_fd"))
		return hand(client->fd, "device", device_of(argument));
	return answer(client->fd, "/error", -1);
}

static void drop(unsigned int which)
{
	close(clients[which].fd);
	clients[which] = clients[--client_count];
}

/* Makes room: whoever has been quiet for the longest goes. A client that is being served is seldom that one. */
static void drop_quietest(void)
{
	unsigned int quietest = 0;

	for (unsigned int i = 1; i < client_count; i++)
		if (clients[i].heard < clients[quietest].heard)
			quietest = i;
	drop(quietest);
}

/* One connection that waits. 0, or -1 if descriptors are so short that it must wait on. */
static int take(int listener, uid_t uid)
{
	struct ucred who = { .uid = -1 };
	socklen_t length = sizeof(who);
	int peer;

	if (client_count == CLIENTS)
		drop_quietest();
	peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (peer < 0) {
		if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
			return 0;
		if (client_count == 0)
			return -1;
		drop_quietest();
		return 0;
	}
	if (getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &length) < 0 || (who.uid != uid && who.uid != 0)) {
		answer(peer, "/host_nak", -1);
		close(peer);
		return 0;
	}
	clients[client_count].fd = peer;
	clients[client_count].connected = 0;
	clients[client_count].requests = 0;
	clients[client_count].accepted = clients[client_count].heard = now_ms();
	client_count++;
	return 0;
}

static long long deadline(const struct client *client)
{
	long long quiet = client->heard + PATIENCE_MS, whole = client->accepted + LIFETIME_MS;

	return quiet < whole ? quiet : whole;
}

/* Serves all clients until a signal comes. */
static void serve_all(int listener, int signals, uid_t uid)
{
	struct pollfd wait[2 + CLIENTS] = { { .fd = signals, .events = POLLIN }, { .events = POLLIN } };
	int short_of_descriptors = 0;

	for (;;) {
		long long left = short_of_descriptors ? 100 : -1;

		for (unsigned int i = 0; i < client_count; i++) {
			long long until = deadline(&clients[i]) - now_ms();

			wait[2 + i].fd = clients[i].fd;
			wait[2 + i].events = POLLIN;
			wait[2 + i].revents = 0;
			if (left < 0 || until < left)
				left = until > 0 ? until : 0;
		}
		/* A listener that cannot be served now would make every poll return at once. */
		wait[1].fd = short_of_descriptors ? -1 : listener;
		wait[1].revents = 0;
		if (poll(wait, 2 + client_count, left) < 0 && errno != EINTR) {
			complain("waiting at", path, errno);
			return;
		}
		if (wait[0].revents)
			return;
		/* From the last on: the last one takes the place of one that is dropped, and had its turn. */
		for (unsigned int i = client_count; i-- > 0;)
			if ((wait[2 + i].revents && serve(&clients[i]) < 0) || now_ms() >= deadline(&clients[i]))
				drop(i);
		short_of_descriptors = wait[1].revents && take(listener, uid) < 0;
	}
}

int main(int argc, char **argv)
{
	int ifindex, listener, signals, error = 0;
	struct xdp_program *program = NULL;
	enum xdp_attach_mode mode;
	sigset_t set_of_signals;
	char *devices;
	long port;
	uid_t uid;

	if (argc != 6 && argc != 7)
		return fprintf(stderr, "usage: %s OBJECT PATH UID IFACE DEVICE[,DEVICE...] [PORT]\n", argv[0]), 2;
	path = argv[2];
	uid = strtoul(argv[3], NULL, 10);
	iface = argv[4];
	port = argc == 7 ? strtol(argv[6], NULL, 10) : 9999;
	if (port < 1 || port > 65535 || !(ifindex = if_nametoindex(iface)))
		return fprintf(stderr, "hand-over: no such port, or no such interface: %s\n", iface), 2;
	sigemptyset(&set_of_signals);
	sigaddset(&set_of_signals, SIGINT);
	sigaddset(&set_of_signals, SIGTERM);
	sigaddset(&set_of_signals, SIGHUP);
	/* If nobody reads its output any more, it continues: otherwise the XDP program would stay attached. */
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_BLOCK, &set_of_signals, NULL);
	if ((signals = signalfd(-1, &set_of_signals, SFD_CLOEXEC)) < 0)
		return complain("making", "a signalfd", errno), 1;
	devices = strdup(argv[5]);
	if (!devices || open_devices(argv[5]) < 0)
		return 1;
	if (!(program = attach(argv[1], ifindex, port, &mode)))
		return 1;
	if ((listener = listen_at(uid)) < 0) {
		error = 1;
	} else {
		say("Handing over %s (queues: %u) and %s at %s\n", iface, count_queues(), devices, path);
		serve_all(listener, signals, uid);
		while (client_count > 0)
			drop(0);
		close(listener);
		remove_socket();
	}
	if ((error |= xdp_program__detach(program, ifindex, mode, 0)) != 0)
		fprintf(stderr, "hand-over: taking the XDP program off %s failed\n", iface);
	xdp_program__close(program);
	free(devices);
	return error != 0;
}
