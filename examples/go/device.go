// A device in Go: the native protocol of docs/PROTOCOL.md with the standard library alone.
//
//	go run . --id meter-17
//
// What to learn here, in reading order:
//
//	readFrames   frames out of a stream that may cut them anywhere
//	dial         TLS with a certificate that is really checked, a client certificate, resumption
//	live         HELLO, WELCOME, heartbeats both ways, messages that are acknowledged, a dead gateway noticed
//	main         coming back: exponential back-off, full jitter, and the time that the gateway asks for
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	frameHello = 1 + iota
	frameWelcome
	framePing
	framePong
	frameMessage
	frameAck
	frameClose
)

const (
	closeNormal        = 0
	closeProtocolError = 4
	patience           = 10 * time.Second
	spanMax            = 300 * time.Second
	unacknowledgedMax  = 16
)

var closeNames = []string{"normal", "going_away", "taken_over", "expired", "protocol_error", "frame_too_large", "identity_mismatch",
	"token_rejected", "hello_timeout", "slow_consumer", "try_later", "requested", "denied"}

// Trying again soon will not help with these: somebody has to look.
var hopeless = map[string]bool{"taken_over": true, "protocol_error": true, "identity_mismatch": true, "token_rejected": true, "denied": true}

var errStopped = errors.New("stopped")

// gone is the end of a connection: why, when to come back, and whether that helps.
type gone struct {
	why        string
	retryAfter time.Duration
	hopeless   bool
	tell       bool // the gateway broke a rule, and is told so
}

func (end *gone) Error() string { return end.why }

func violation(what string) error {
	return &gone{why: "the gateway broke a rule: " + what, hopeless: true, tell: true}
}

type options struct {
	host, port, serverName, ca, cert, key, id, token string
	heartbeat, report                                float64
}

type frame struct {
	kind byte
	body []byte
}

// message is what the gateway has not acknowledged. A real device keeps it where a power cut does not reach.
type message struct {
	number  uint32
	payload string
}

type device struct {
	options options
	config  *tls.Config
	outbox  []message // the oldest first
	number  uint32
	stop    context.Context
}

func say(format string, arguments ...any) {
	fmt.Printf("%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, arguments...))
}

// --- TLS -------------------------------------------------------------------------------------------------------------

// tlsConfig is made once: it keeps what sessions are resumed with.
func tlsConfig(options options) (*tls.Config, error) {
	// Checks the chain, the validity and the name. Never set InsecureSkipVerify: without the check this is not TLS.
	config := &tls.Config{ServerName: options.serverName, MinVersion: tls.VersionTLS12, NextProtos: []string{"pulsegate/1"},
		RootCAs: x509.NewCertPool(), ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	authority, err := os.ReadFile(options.ca)
	if err != nil {
		return nil, err
	}
	if !config.RootCAs.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s: there is no certificate in it", options.ca)
	}
	if options.cert != "" {
		pair, err := tls.LoadX509KeyPair(options.cert, options.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func (d *device) dial() (*tls.Conn, error) {
	within, cancel := context.WithTimeout(d.stop, patience)
	defer cancel()
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: d.config}
	connection, err := dialer.DialContext(within, "tcp", net.JoinHostPort(d.options.host, d.options.port))
	if err == nil {
		return connection.(*tls.Conn), nil
	}
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	if errors.As(err, &authority) || errors.As(err, &name) || errors.As(err, &invalid) {
		return nil, &gone{why: "the gateway's certificate is not right: " + err.Error(), hopeless: true}
	}
	return nil, err
}

// --- The native protocol ---------------------------------------------------------------------------------------------

// send writes one frame. One write is one record: cheaper than header and body apart.
func send(connection net.Conn, kind byte, body []byte) error {
	bytes := append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(body))), body...)
	connection.SetWriteDeadline(time.Now().Add(patience))
	_, err := connection.Write(bytes)
	return err
}

func sendClose(connection net.Conn, code byte) {
	send(connection, frameClose, []byte{code, 0, 0, 0, 0})
}

// readFrames hands on what comes until the connection ends, or nobody takes it any more.
func readFrames(connection net.Conn, frames chan<- frame, failed chan<- error, done <-chan struct{}) {
	reader := bufio.NewReader(connection)
	for {
		header := make([]byte, 3)
		_, err := io.ReadFull(reader, header)
		body := make([]byte, binary.BigEndian.Uint16(header[1:]))
		if err == nil {
			_, err = io.ReadFull(reader, body)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the gateway ended the connection")
		}
		if err != nil {
			failed <- err
			return
		}
		select {
		case frames <- frame{header[0], body}:
		case <-done:
			return
		}
	}
}

func (d *device) sendHello(connection net.Conn) error {
	body := binary.BigEndian.AppendUint32([]byte{1}, uint32(d.options.heartbeat*1000))
	body = append(append(body, byte(len(d.options.id))), d.options.id...)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(d.options.token))), d.options.token...)
	return send(connection, frameHello, body)
}

func sendMessage(connection net.Conn, one message) error {
	const topic = "power"
	body := append(binary.BigEndian.AppendUint32(nil, one.number), byte(len(topic)))
	return send(connection, frameMessage, append(append(body, topic...), one.payload...))
}

// report says what this device has to tell: a made-up measurement.
func (d *device) report(connection net.Conn) error {
	if len(d.outbox) == unacknowledgedMax {
		return nil
	}
	// Numbers go up from 1, and 0 means that no ACK is wanted.
	d.number++
	if d.number == 0 {
		d.number = 1
	}
	one := message{d.number, fmt.Sprintf(`{"w":%d}`, 200+rand.Intn(60))}
	d.outbox = append(d.outbox, one)
	return sendMessage(connection, one)
}

func (d *device) acknowledged(number uint32) {
	for place, one := range d.outbox {
		if one.number == number {
			d.outbox = append(d.outbox[:place], d.outbox[place+1:]...)
			say("acknowledged %d", number)
			return
		}
	}
}

func closed(body []byte) error {
	if len(body) < 5 {
		return violation("CLOSE is too short")
	}
	name := "normal"
	if int(body[0]) < len(closeNames) {
		name = closeNames[body[0]]
	}
	retryAfter := time.Duration(binary.BigEndian.Uint32(body[1:])) * time.Millisecond
	why := fmt.Sprintf("%s '%s', come back after %.1f s", name, body[5:], retryAfter.Seconds())
	return &gone{why: why, retryAfter: retryAfter, hopeless: hopeless[name]}
}

// handle does what a frame asks for. An error is the end of the connection.
func (d *device) handle(connection net.Conn, kind byte, body []byte) error {
	switch kind {
	case framePing:
		return send(connection, framePong, body)
	case framePong:
		return nil
	case frameMessage:
		if len(body) < 5 || len(body) < 5+int(body[4]) {
			return violation("MESSAGE is too short")
		}
		end := 5 + int(body[4])
		say("message %s %s", body[5:end], body[end:])
		// After the work is done, or kept safe: whoever sent it relies on that.
		if binary.BigEndian.Uint32(body) == 0 {
			return nil
		}
		return send(connection, frameAck, body[:4])
	case frameAck:
		if len(body) != 4 {
			return violation("ACK is not 4 bytes")
		}
		d.acknowledged(binary.BigEndian.Uint32(body))
		return nil
	case frameClose:
		return closed(body)
	}
	return violation(fmt.Sprintf("frame %d is not for a device", kind))
}

// welcome reads the gateway's answer to HELLO: after which silence it probes, and for how long it waits then.
func welcome(connection *tls.Conn, id string, first frame) (heartbeat, timeout time.Duration, err error) {
	if first.kind == frameClose {
		return 0, 0, closed(first.body)
	}
	if first.kind != frameWelcome || len(first.body) != 12 || first.body[0] != 1 {
		return 0, 0, violation("something else instead of WELCOME")
	}
	heartbeat = time.Duration(binary.BigEndian.Uint32(first.body[1:])) * time.Millisecond
	timeout = time.Duration(binary.BigEndian.Uint32(first.body[5:])) * time.Millisecond
	state := connection.ConnectionState()
	version := map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[state.Version]
	say("connected as %s, %s, resumed: %t, heartbeat %g s", id, version, state.DidResume, heartbeat.Seconds())
	return heartbeat, timeout, nil
}

// live is one connection, from HELLO to its end, which is the error. steadyAfter is when it counts as one that has lasted; zero
// before WELCOME.
func (d *device) live(connection *tls.Conn) (steadyAfter time.Time, err error) {
	frames, failed, done := make(chan frame), make(chan error, 1), make(chan struct{})
	defer close(done)
	go readFrames(connection, frames, failed, done)
	if err := d.sendHello(connection); err != nil {
		return steadyAfter, err
	}
	var heartbeat, timeout time.Duration
	select {
	case first := <-frames:
		if heartbeat, timeout, err = welcome(connection, d.options.id, first); err != nil {
			return steadyAfter, err
		}
	case err := <-failed:
		return steadyAfter, err
	case <-d.stop.Done():
		return steadyAfter, errStopped
	case <-time.After(patience):
		return steadyAfter, errors.New("no WELCOME came")
	}
	steadyAfter = time.Now().Add(heartbeat)
	// What was not acknowledged may be lost: all of it again, in the old order, with the old numbers.
	for _, one := range d.outbox {
		if err := sendMessage(connection, one); err != nil {
			return steadyAfter, err
		}
	}
	return steadyAfter, d.talk(connection, frames, failed, heartbeat, timeout)
}

// talk is what follows WELCOME.
func (d *device) talk(connection *tls.Conn, frames <-chan frame, failed <-chan error, heartbeat, timeout time.Duration) error {
	var reports <-chan time.Time
	if d.options.report > 0 {
		ticker := time.NewTicker(time.Duration(d.options.report * float64(time.Second)))
		defer ticker.Stop()
		reports = ticker.C
		if err := d.report(connection); err != nil {
			return err
		}
	}
	// A living gateway is never silent for longer than this, whatever this device does.
	silentUntil, asked := time.Now().Add(heartbeat+timeout), false
	for {
		silence := time.NewTimer(time.Until(silentUntil))
		var err error
		select {
		case one := <-frames:
			silentUntil, asked = time.Now().Add(heartbeat+timeout), false
			err = d.handle(connection, one.kind, one.body)
		case <-reports:
			err = d.report(connection)
		case <-silence.C:
			if asked {
				return errors.New("the gateway is dead: not a byte for too long")
			}
			silentUntil, asked = time.Now().Add(timeout), true
			err = send(connection, framePing, nil)
		case err = <-failed:
		case <-d.stop.Done():
			sendClose(connection, closeNormal)
			err = errStopped
		}
		silence.Stop()
		if err != nil {
			return err
		}
	}
}

// --- Coming back -----------------------------------------------------------------------------------------------------

func readOptions() options {
	var o options
	flag.StringVar(&o.host, "host", "localhost", "the gateway")
	flag.StringVar(&o.port, "port", "7443", "its port")
	flag.StringVar(&o.serverName, "server-name", "", "the name in the gateway's certificate, if it is not the host's")
	flag.StringVar(&o.ca, "ca", "pulsegate-data/certs/ca.pem", "whom to trust (PEM)")
	flag.StringVar(&o.cert, "cert", "", "client certificate (PEM)")
	flag.StringVar(&o.key, "key", "", "its key (PEM)")
	flag.StringVar(&o.id, "id", "device-6", "the device's name")
	flag.StringVar(&o.token, "token", "", "proof of the id, where the gateway demands one")
	flag.Float64Var(&o.heartbeat, "heartbeat", 0, "seconds; 0: as the gateway likes")
	flag.Float64Var(&o.report, "report", 10, "seconds between two messages; 0: none")
	flag.Parse()
	if o.serverName == "" {
		o.serverName = o.host
	}
	if len(o.id) < 1 || len(o.id) > 128 || len(o.token) > 1024 || !(o.heartbeat >= 0 && o.heartbeat <= 86400) || !(o.report >= 0) {
		fmt.Fprintln(os.Stderr, "device: an id has 1 to 128 bytes, a token at most 1024, and a heartbeat is 0 to 86400 seconds")
		os.Exit(2)
	}
	return o
}

// once is one connection; the answer is how it ended, and when it counted as one that has lasted.
func (d *device) once() (time.Time, error) {
	connection, err := d.dial()
	if err != nil {
		return time.Time{}, err
	}
	defer connection.Close()
	steadyAfter, err := d.live(connection)
	var end *gone
	if errors.As(err, &end) && end.tell {
		sendClose(connection, closeProtocolError)
	}
	return steadyAfter, err
}

func main() {
	rand.Seed(time.Now().UnixNano())
	options := readOptions()
	config, err := tlsConfig(options)
	if err != nil {
		fmt.Fprintln(os.Stderr, "device:", err)
		os.Exit(1)
	}
	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	d := &device{options: options, config: config, stop: stop}

	for failures := 0; ; {
		steadyAfter, err := d.once()
		if stop.Err() != nil {
			return
		}
		say("closed: %v", err)
		end := &gone{}
		errors.As(err, &end)
		// Whoever held for a while begins anew, and whoever is told when to come back by a gateway that let it in; everybody else
		// doubles the span, and takes a random point in it: a fleet that lost its gateway at one moment must not come back at one
		// moment.
		welcomed := !steadyAfter.IsZero()
		if welcomed && (time.Now().After(steadyAfter) || end.retryAfter > 0) {
			failures = 0
		} else {
			failures++
		}
		span := spanMax
		if !end.hopeless && failures <= 8 {
			span = time.Second << failures
		}
		wait := end.retryAfter + time.Duration(rand.Int63n(int64(span)))
		say("coming back in %.1f s", wait.Seconds())
		select {
		case <-time.After(wait):
		case <-stop.Done():
			return
		}
	}
}
