/* A device in C over mbedTLS: the native protocol of docs/PROTOCOL.md, as a small device would speak it.
 *
 *     make && ./device --ca pulsegate-data/certs/ca.pem --id meter-17
 *
 * What to learn here, in reading order:
 *
 *     start()        everything that is ever allocated; afterwards this file allocates nothing
 *     dial()         TCP and TLS within a deadline, the certificate checked, the session resumed
 *     read_frame()   frames out of one buffer of 4 KiB, however records cut them
 *     live()         HELLO, WELCOME, heartbeats both ways, messages that are acknowledged, a dead gateway noticed
 *     main()         coming back: exponential back-off, full jitter, and the time that the gateway asks for
 *
 * mbedTLS itself allocates within a handshake and gives it back; on a device without a heap, build it with
 * MBEDTLS_MEMORY_BUFFER_ALLOC_C and hand it an array. There, MBEDTLS_SSL_IN_CONTENT_LEN 4096 is enough: the gateway's records
 * are no larger (listener.tls.record_bytes). It is to be built with mbedTLS 2.28; what 3.x wants otherwise is marked, and untried.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>
#include <mbedtls/x509_crt.h>
#if MBEDTLS_VERSION_MAJOR >= 3
#include <psa/crypto.h>
#endif

enum { HELLO = 1, WELCOME, PING, PONG, MESSAGE, ACK, CLOSE };
enum { PROTOCOL_ERROR = 4, FRAME_TOO_LARGE = 5 };

#define HEADER 3
#define IN_MAX 4096                     /* A frame that is longer is refused. */
#define OUT_MAX (HEADER + 1160)         /* The longest frame that is sent: HELLO with the longest id and token. */
#define PATIENCE_MS 10000
#define SPAN_MAX_MS 300000
#define OUTBOX_MAX 16                   /* Messages that wait for their ACK. */
#define PAYLOAD_MAX 32

struct options {
    const char *host, *port, *server_name, *ca, *cert, *key, *id, *token;
    uint32_t heartbeat_ms, report_ms;   /* 0: as the gateway likes; no messages */
};

/* A message that the gateway has not acknowledged. A real device keeps them where a power cut does not reach. */
struct waiting {
    uint32_t number;
    uint8_t length;
    char payload[PAYLOAD_MAX];
};

/* Why a connection is over, and what follows from that. */
struct end {
    char why[320];
    uint32_t retry_after_ms;
    bool hopeless;                      /* Trying again soon does not help: somebody has to look. */
};

static struct options options = {"localhost", "7443", NULL, "pulsegate-data/certs/ca.pem", NULL, NULL, "device-3", "", 0, 10000};

static mbedtls_entropy_context entropy;
static mbedtls_ctr_drbg_context random_bytes;
static mbedtls_x509_crt authority, certificate;
static mbedtls_pk_context private_key;
static mbedtls_ssl_config config;
static mbedtls_ssl_context tls;
static mbedtls_ssl_session session;     /* What the next connection is resumed with. */
static bool has_session;
static mbedtls_net_context tcp;

static uint8_t in[IN_MAX], out[OUT_MAX];
static size_t in_length, in_taken;      /* Bytes in `in`, and how many of them the frame in hand has. */
static struct waiting outbox[OUTBOX_MAX];   /* The oldest first. */
static size_t outbox_length;
static uint32_t last_number;
static uint64_t heartbeat, timeout;     /* Milliseconds, as WELCOME has them. */
static uint64_t last_heard, steady_after;   /* steady_after: 0 before WELCOME. */
static struct end end;
static volatile sig_atomic_t is_stopping;

/* --- Small things ------------------------------------------------------------------------------------------------- */

static void stop(int signal_number) { (void)signal_number; is_stopping = 1; }

static uint64_t now_ms(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000 + (uint64_t)at.tv_nsec / 1000000;
}

static void say(const char *format, ...)
{
    char text[32];
    time_t at = time(NULL);
    struct tm local;
    va_list arguments;
    strftime(text, sizeof text, "%H:%M:%S", localtime_r(&at, &local));
    printf("%s ", text);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

/* Notes why the connection is over. */
static int gone(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(end.why, sizeof end.why, format, arguments);
    va_end(arguments);
    return -1;
}

static int tls_gone(const char *what, int error)
{
    char text[160];
    if (error == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY || error == 0)
        return gone("the gateway ended the connection");
    mbedtls_strerror(error, text, sizeof text);
    return gone("%s: %s", what, text);
}

static void put_u16(uint8_t *at, uint32_t value) { at[0] = (uint8_t)(value >> 8); at[1] = (uint8_t)value; }
static void put_u32(uint8_t *at, uint32_t value) { put_u16(at, value >> 16); put_u16(at + 2, value); }
static uint32_t get_u16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }
static uint32_t get_u32(const uint8_t *at) { return get_u16(at) << 16 | get_u16(at + 2); }

static uint32_t random_below(uint32_t bound)
{
    uint8_t bytes[4];
    mbedtls_ctr_drbg_random(&random_bytes, bytes, sizeof bytes);
    return (uint32_t)((uint64_t)get_u32(bytes) * bound >> 32);
}

/* Waits until the socket is ready, or until a moment. 1: ready, or worth a look; 0: not by then; -1: a signal came. */
static int await_socket(short events, uint64_t until)
{
    struct pollfd ready = {tcp.fd, events, 0};
    uint64_t now = now_ms();
    /* A second at most: a signal between the check and the sleep is noticed soon. */
    int wait = now >= until ? 0 : until - now > 1000 ? 1000 : (int)(until - now);
    int count;
    if (is_stopping)
        return gone("stopped");
    count = poll(&ready, 1, wait);
    return count < 0 ? gone("%s", strerror(errno)) : count > 0 ? 1 : now_ms() >= until ? 0 : 1;
}

/* --- TLS ---------------------------------------------------------------------------------------------------------- */

static void check_start(const char *what, int error)
{
    char text[160];
    if (error == 0)
        return;
    mbedtls_strerror(error, text, sizeof text);
    fprintf(stderr, "device: %s: %s\n", what, text);
    exit(1);
}

static void start(void)
{
    static const char *protocols[] = {"pulsegate/1", NULL};
#if MBEDTLS_VERSION_MAJOR >= 3
    check_start("the random number generator", psa_crypto_init());
#endif
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random_bytes);
    mbedtls_x509_crt_init(&authority);
    mbedtls_x509_crt_init(&certificate);
    mbedtls_pk_init(&private_key);
    mbedtls_ssl_config_init(&config);
    mbedtls_ssl_init(&tls);
    mbedtls_ssl_session_init(&session);
    mbedtls_net_init(&tcp);

    check_start("the random number generator",
                mbedtls_ctr_drbg_seed(&random_bytes, mbedtls_entropy_func, &entropy, (const uint8_t *)options.id, strlen(options.id)));
    check_start(options.ca, mbedtls_x509_crt_parse_file(&authority, options.ca));
    check_start("the configuration of TLS", mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                                                        MBEDTLS_SSL_PRESET_DEFAULT));
    /* Checks the chain, the validity and the name. Never switch that off: without it this is not TLS. */
    mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_REQUIRED);
    mbedtls_ssl_conf_ca_chain(&config, &authority, NULL);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random_bytes);
#if MBEDTLS_VERSION_MAJOR < 3
    mbedtls_ssl_conf_min_version(&config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
#endif
    check_start("ALPN", mbedtls_ssl_conf_alpn_protocols(&config, protocols));
    /* Tells the gateway too what fits, should its operator have chosen larger records. */
    check_start("the fragment length", mbedtls_ssl_conf_max_frag_len(&config, MBEDTLS_SSL_MAX_FRAG_LEN_4096));
    if (options.cert) {
        check_start(options.cert, mbedtls_x509_crt_parse_file(&certificate, options.cert));
#if MBEDTLS_VERSION_MAJOR >= 3
        check_start(options.key, mbedtls_pk_parse_keyfile(&private_key, options.key, NULL, mbedtls_ctr_drbg_random, &random_bytes));
#else
        check_start(options.key, mbedtls_pk_parse_keyfile(&private_key, options.key, NULL));
#endif
        check_start("the client certificate", mbedtls_ssl_conf_own_cert(&config, &certificate, &private_key));
    }
    check_start("TLS", mbedtls_ssl_setup(&tls, &config));
    check_start("the server's name", mbedtls_ssl_set_hostname(&tls, options.server_name));
    mbedtls_ssl_set_bio(&tls, &tcp, mbedtls_net_send, mbedtls_net_recv, NULL);
}

static void save_session(void)
{
    mbedtls_ssl_session_free(&session);
    mbedtls_ssl_session_init(&session);
    has_session = mbedtls_ssl_get_session(&tls, &session) == 0;
}

/* 0: try once more; -1: the connection is over. Waits for what mbedTLS waits for. */
static int await_tls(int error, uint64_t until, const char *what)
{
    int ready;
#ifdef MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
    if (error == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET) {
        save_session();
        return 0;
    }
#endif
    if (error != MBEDTLS_ERR_SSL_WANT_READ && error != MBEDTLS_ERR_SSL_WANT_WRITE)
        return tls_gone(what, error);
    ready = await_socket(error == MBEDTLS_ERR_SSL_WANT_READ ? POLLIN : POLLOUT, until);
    return ready > 0 ? 0 : ready == 0 ? gone("%s: not within %d s", what, PATIENCE_MS / 1000) : -1;
}

static int dial_address(const struct addrinfo *address, uint64_t until)
{
    int error = 0, on = 1, ready;
    socklen_t size = sizeof error;
    tcp.fd = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
    if (tcp.fd < 0)
        return gone("socket: %s", strerror(errno));
    mbedtls_net_set_nonblock(&tcp);
    /* Small frames leave at once. */
    setsockopt(tcp.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(tcp.fd, address->ai_addr, address->ai_addrlen) != 0 && errno != EINPROGRESS)
        return gone("%s port %s: %s", options.host, options.port, strerror(errno));
    for (;;) {
        struct pollfd open = {tcp.fd, POLLOUT, 0};
        ready = await_socket(POLLOUT, until);
        if (ready < 0)
            return -1;
        if (ready == 0)
            return gone("%s port %s: no answer within %d s", options.host, options.port, PATIENCE_MS / 1000);
        if (poll(&open, 1, 0) > 0)
            break;
    }
    getsockopt(tcp.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error == 0 ? 0 : gone("%s port %s: %s", options.host, options.port, strerror(error));
}

static int handshake(uint64_t until)
{
    int error;
    mbedtls_ssl_session_reset(&tls);
    if (has_session)
        mbedtls_ssl_set_session(&tls, &session);
    while ((error = mbedtls_ssl_handshake(&tls)) != 0) {
        if (error == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED) {
            char text[160] = "";
            mbedtls_x509_crt_verify_info(text, sizeof text, "", mbedtls_ssl_get_verify_result(&tls));
            text[strcspn(text, "\n")] = 0;
            end.hopeless = true;
            return gone("the gateway's certificate is not right: %s", text);
        }
        if (await_tls(error, until, "TLS handshake") != 0) {
            has_session = false;        /* The next attempt owes nothing to what may have been wrong with it. */
            return -1;
        }
    }
    save_session();
    return 0;
}

static int dial(void)
{
    struct addrinfo hints, *addresses, *address;
    uint64_t until = now_ms() + PATIENCE_MS;
    int outcome, error;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    error = getaddrinfo(options.host, options.port, &hints, &addresses);
    if (error != 0)
        return gone("%s: %s", options.host, gai_strerror(error));
    outcome = gone("%s: no address", options.host);
    for (address = addresses; address && outcome != 0 && !is_stopping; address = address->ai_next) {
        mbedtls_net_free(&tcp);
        outcome = dial_address(address, until);
    }
    freeaddrinfo(addresses);
    return outcome == 0 ? handshake(until) : -1;
}

/* --- Frames ------------------------------------------------------------------------------------------------------- */

/* Sends the frame whose body of so many bytes lies in `out` behind the header. One write is one record. */
static int send_frame(uint8_t type, size_t length)
{
    uint64_t until = now_ms() + PATIENCE_MS;
    size_t sent = 0;
    out[0] = type;
    put_u16(out + 1, (uint32_t)length);
    while (sent < HEADER + length) {
        int count = mbedtls_ssl_write(&tls, out + sent, HEADER + length - sent);
        if (count > 0)
            sent += (size_t)count;
        else if (await_tls(count, until, "writing") != 0)
            return -1;
    }
    return 0;
}

static void send_close(uint8_t code)
{
    out[HEADER] = code;
    put_u32(out + HEADER + 1, 0);
    if (send_frame(CLOSE, 5) == 0)
        mbedtls_ssl_close_notify(&tls);
}

static int violation(uint8_t code, const char *what)
{
    send_close(code);
    end.hopeless = code == PROTOCOL_ERROR;
    return gone("the gateway broke a rule: %s", what);
}

/* The next frame at the head of `in`. 1: it is there; 0: none by then; -1: the connection is over. */
static int read_frame(uint64_t until)
{
    memmove(in, in + in_taken, in_length - in_taken);
    in_length -= in_taken;
    in_taken = 0;
    for (;;) {
        int count, ready;
        if (in_length >= HEADER) {
            size_t length = HEADER + get_u16(in + 1);
            if (length > IN_MAX)
                return violation(FRAME_TOO_LARGE, "a frame that does not fit");
            if (in_length >= length) {
                in_taken = length;
                return 1;
            }
        }
        count = mbedtls_ssl_read(&tls, in + in_length, IN_MAX - in_length);
        if (count > 0) {
            in_length += (size_t)count;
            last_heard = now_ms();
            continue;
        }
        if (count == MBEDTLS_ERR_SSL_WANT_READ) {
            ready = await_socket(POLLIN, until);
            if (ready <= 0)
                return ready;
        } else if (await_tls(count, now_ms() + PATIENCE_MS, "reading") != 0) {
            return -1;
        }
    }
}

/* --- The native protocol ------------------------------------------------------------------------------------------ */

static int send_hello(void)
{
    size_t id_length = strlen(options.id), token_length = strlen(options.token);
    uint8_t *body = out + HEADER;
    body[0] = 1;
    put_u32(body + 1, options.heartbeat_ms);
    body[5] = (uint8_t)id_length;
    memcpy(body + 6, options.id, id_length);
    put_u16(body + 6 + id_length, (uint32_t)token_length);
    memcpy(body + 8 + id_length, options.token, token_length);
    return send_frame(HELLO, 8 + id_length + token_length);
}

static int send_message(const struct waiting *message)
{
    static const char topic[] = "power";
    uint8_t *body = out + HEADER;
    put_u32(body, message->number);
    body[4] = sizeof topic - 1;
    memcpy(body + 5, topic, sizeof topic - 1);
    memcpy(body + 5 + sizeof topic - 1, message->payload, message->length);
    return send_frame(MESSAGE, 5 + sizeof topic - 1 + message->length);
}

/* What this device has to tell: a made-up measurement. */
static int report(void)
{
    struct waiting *message = &outbox[outbox_length];
    if (outbox_length == OUTBOX_MAX)
        return 0;
    /* Numbers go up from 1, and 0 means that no ACK is wanted. */
    last_number = last_number == UINT32_MAX ? 1 : last_number + 1;
    message->number = last_number;
    message->length = (uint8_t)snprintf(message->payload, PAYLOAD_MAX, "{\"w\":%u}", (unsigned)(200 + random_below(60)));
    outbox_length += 1;
    return send_message(message);
}

static void acknowledged(uint32_t number)
{
    size_t place = 0;
    while (place < outbox_length && outbox[place].number != number)
        place += 1;
    if (place == outbox_length)
        return;
    memmove(&outbox[place], &outbox[place + 1], (outbox_length - place - 1) * sizeof outbox[0]);
    outbox_length -= 1;
    say("acknowledged %u", (unsigned)number);
}

/* What the gateway tells this device. A real one switches its relay here. */
static void command(const uint8_t *topic, size_t topic_length, const uint8_t *payload, size_t payload_length)
{
    char text[160];
    size_t at;
    if (payload_length >= sizeof text)
        payload_length = sizeof text - 1;
    for (at = 0; at < payload_length; at += 1)
        text[at] = payload[at] < ' ' || payload[at] == 0x7f ? '.' : (char)payload[at];
    text[at] = 0;
    say("message %.*s %s", (int)topic_length, (const char *)topic, text);
}

static int closed(const uint8_t *body, size_t length)
{
    static const char *names[] = {"normal", "going_away", "taken_over", "expired", "protocol_error", "frame_too_large",
                                  "identity_mismatch", "token_rejected", "hello_timeout", "slow_consumer", "try_later", "requested",
                                  "denied"};
    static const bool hopeless[] = {false, false, true, false, true, false, true, true, false, false, false, false, true};
    size_t code;
    if (length < 5)
        return violation(PROTOCOL_ERROR, "CLOSE is too short");
    code = body[0] < sizeof names / sizeof names[0] ? body[0] : 0;
    end.retry_after_ms = get_u32(body + 1);
    end.hopeless = hopeless[code];
    return gone("%s '%.*s', come back after %.1f s", names[code], (int)(length - 5), (const char *)body + 5,
                end.retry_after_ms / 1000.0);
}

/* Does what the frame at the head of `in` asks for. -1: the connection is over. */
static int handle_frame(void)
{
    const uint8_t *body = in + HEADER;
    size_t length = in_taken - HEADER;
    uint32_t number;
    switch (in[0]) {
    case PING:
        if (length > 8)
            return violation(PROTOCOL_ERROR, "PING is too long");
        memcpy(out + HEADER, body, length);
        return send_frame(PONG, length);
    case PONG:
        return 0;
    case MESSAGE:
        if (length < 5 || length < 5u + body[4])
            return violation(PROTOCOL_ERROR, "MESSAGE is too short");
        number = get_u32(body);
        command(body + 5, body[4], body + 5 + body[4], length - 5 - body[4]);
        /* After the work is done, or kept safe: whoever sent it relies on that. */
        put_u32(out + HEADER, number);
        return number == 0 ? 0 : send_frame(ACK, 4);
    case ACK:
        if (length != 4)
            return violation(PROTOCOL_ERROR, "ACK is not 4 bytes");
        acknowledged(get_u32(body));
        return 0;
    case CLOSE:
        return closed(body, length);
    default:
        return violation(PROTOCOL_ERROR, "a frame that is not for a device");
    }
}

static int welcome(void)
{
    const uint8_t *body = in + HEADER;
    int outcome;
    if (send_hello() != 0)
        return -1;
    outcome = read_frame(now_ms() + PATIENCE_MS);
    if (outcome <= 0)
        return outcome == 0 ? gone("no WELCOME came") : -1;
    if (in[0] == CLOSE)
        return closed(body, in_taken - HEADER);
    if (in[0] != WELCOME || in_taken != HEADER + 12 || body[0] != 1)
        return violation(PROTOCOL_ERROR, "something else instead of WELCOME");
    heartbeat = get_u32(body + 1);
    timeout = get_u32(body + 5);
    steady_after = now_ms() + heartbeat;
    say("connected as %s, %s, heartbeat %g s", options.id, mbedtls_ssl_get_version(&tls), heartbeat / 1000.0);
    return 0;
}

/* One connection, from HELLO to its end. */
static void live(void)
{
    uint64_t next_report = now_ms();
    bool asked = false;
    size_t place;
    last_heard = now_ms();
    if (welcome() != 0)
        return;
    /* What was not acknowledged may be lost: all of it again, in the old order, with the old numbers. */
    for (place = 0; place < outbox_length; place += 1)
        if (send_message(&outbox[place]) != 0)
            return;
    for (;;) {
        uint64_t now = now_ms(), until, silent_until = last_heard + heartbeat + timeout * (asked ? 2 : 1);
        int outcome;
        if (options.report_ms && now >= next_report) {
            next_report = now + options.report_ms;
            if (report() != 0)
                return;
        }
        /* A living gateway is never silent for longer than this, whatever this device does. */
        if (now >= silent_until && asked) {
            gone("the gateway is dead: not a byte for too long");
            return;
        }
        if (now >= silent_until) {
            if (send_frame(PING, 0) != 0)
                return;
            asked = true;
            continue;
        }
        until = options.report_ms && next_report < silent_until ? next_report : silent_until;
        outcome = read_frame(until);
        if (outcome < 0 || (outcome > 0 && handle_frame() != 0))
            return;
        asked = asked && outcome == 0;
    }
}

/* --- Coming back -------------------------------------------------------------------------------------------------- */

static uint32_t milliseconds(const char *name, const char *text)
{
    char *rest;
    double seconds = strtod(text, &rest);
    if (rest == text || *rest || !(seconds >= 0 && seconds <= 86400)) {
        fprintf(stderr, "device: %s %s: write seconds, 0 to 86400\n", name, text);
        exit(2);
    }
    return (uint32_t)(seconds * 1000);
}

static void read_options(int count, char **words)
{
    static const struct { const char *name; const char **into; } known[] = {
        {"--host", &options.host}, {"--port", &options.port}, {"--server-name", &options.server_name}, {"--ca", &options.ca},
        {"--cert", &options.cert}, {"--key", &options.key}, {"--id", &options.id}, {"--token", &options.token},
    };
    size_t place, known_count = sizeof known / sizeof known[0];
    int at;
    for (at = 1; at < count; at += 2) {
        const char *value = at + 1 < count ? words[at + 1] : NULL;
        for (place = 0; place < known_count && strcmp(words[at], known[place].name) != 0; place += 1)
            continue;
        if (value && place < known_count) {
            *known[place].into = value;
        } else if (value && strcmp(words[at], "--heartbeat") == 0) {
            options.heartbeat_ms = milliseconds(words[at], value);
        } else if (value && strcmp(words[at], "--report") == 0) {
            options.report_ms = milliseconds(words[at], value);
        } else {
            fprintf(stderr, "usage: device [--host H] [--port P] [--server-name N] [--ca FILE] [--cert FILE --key FILE] [--id ID]"
                            " [--token T] [--heartbeat SECONDS] [--report SECONDS]\n");
            exit(2);
        }
    }
    if (options.server_name == NULL)
        options.server_name = options.host;
    if (!options.id[0] || strlen(options.id) > 128 || strlen(options.token) > 1024 || !options.cert != !options.key) {
        fprintf(stderr, "device: an id has 1 to 128 bytes, a token at most 1024, and --cert goes with --key\n");
        exit(2);
    }
}

int main(int count, char **words)
{
    static char line[1024];
    struct sigaction on_stop;
    unsigned failures = 0;
    setvbuf(stdout, line, _IOFBF, sizeof line);
    read_options(count, words);
    memset(&on_stop, 0, sizeof on_stop);
    on_stop.sa_handler = stop;
    sigaction(SIGINT, &on_stop, NULL);
    sigaction(SIGTERM, &on_stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    start();

    while (!is_stopping) {
        uint32_t span, wait;
        uint64_t until;
        memset(&end, 0, sizeof end);
        in_length = in_taken = 0;
        steady_after = 0;
        if (dial() == 0)
            live();
        if (is_stopping) {
            is_stopping = 0;            /* For this one frame. */
            if (steady_after)
                send_close(0);
            mbedtls_net_free(&tcp);
            break;
        }
        mbedtls_net_free(&tcp);
        say("closed: %s", end.why);

        /* Whoever held for a while begins anew, and whoever is told when to come back by a gateway that let it in; everybody
         * else doubles the span, and takes a random point in it: a fleet that lost its gateway at one moment must not come back
         * at one moment. */
        failures = steady_after && (now_ms() >= steady_after || end.retry_after_ms) ? 0 : failures + 1;
        span = end.hopeless || failures > 8 ? SPAN_MAX_MS : 1000u << failures;
        wait = end.retry_after_ms + random_below(span);
        say("coming back in %.1f s", wait / 1000.0);
        for (until = now_ms() + wait; now_ms() < until && !is_stopping;) {
            uint64_t left = until - now_ms();
            poll(NULL, 0, left > 1000 ? 1000 : (int)left);
        }
    }

    mbedtls_ssl_session_free(&session);
    mbedtls_ssl_free(&tls);
    mbedtls_ssl_config_free(&config);
    mbedtls_pk_free(&private_key);
    mbedtls_x509_crt_free(&certificate);
    mbedtls_x509_crt_free(&authority);
    mbedtls_ctr_drbg_free(&random_bytes);
    mbedtls_entropy_free(&entropy);
    return 0;
}
