package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardorder/client"
	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/netfault"
)

const (
	issuer      = local.IssuerID
	example     = "deploy/example"
	simKey      = example + "/keys/d1sim-encryption-key.json"
	databaseURL = "CARDORDER_DATABASE_URL="
)

// cluster is everything that runs: PostgreSQL, the simulator of D1, the replicas,
// and the networks between them.
type cluster struct {
	dir        string
	database   *database
	simulator  *exec.Cmd
	d1         string          // where the simulator listens
	fromD1     *netfault.Proxy // between D1 and the replicas' notification listeners
	management *d1sim.Client
	replicas   []*replica
	token      string
	encrypter  *d1client.Encrypter

	stopReplicas context.CancelFunc
	running      sync.WaitGroup
}

// startCluster builds the programs and starts everything.
func startCluster(ctx context.Context, dir string, o options, b bureau) (_ *cluster, err error) {
	c := &cluster{dir: dir}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+string(filepath.Separator), "./cmd/server", "./cmd/d1sim")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return c, fmt.Errorf("building: %w", err)
	}
	if c.database, err = startDatabase(ctx, dir); err != nil {
		return c, err
	}
	if c.fromD1, err = netfault.Listen("127.0.0.1:1"); err != nil {
		return c, err
	}
	if err := c.startSimulator(ctx, b); err != nil {
		return c, err
	}
	if err := c.configure(ctx, o.replicas, b); err != nil {
		return c, err
	}
	if err := c.readKeys(); err != nil {
		return c, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.stopReplicas = cancel
	for _, r := range c.replicas {
		c.running.Go(func() { r.run(running) })
	}
	c.running.Go(func() { c.lead(running) })
	for _, r := range c.replicas {
		if err := r.awaitReady(ctx, time.Minute); err != nil {
			return c, err
		}
	}
	return c, nil
}

// stop ends everything, the replicas in order.
func (c *cluster) stop() {
	if c.stopReplicas != nil {
		c.stopReplicas()
	}
	c.running.Wait()
	for _, r := range c.replicas {
		for _, p := range []*netfault.Proxy{r.toAPI, r.toDatabase, r.toD1} {
			p.Close()
		}
	}
	if c.fromD1 != nil {
		c.fromD1.Close()
	}
	if c.simulator != nil {
		_ = c.simulator.Process.Signal(syscall.SIGTERM)
		_ = c.simulator.Wait()
	}
	if c.database != nil && c.database.server != nil {
		if err := c.database.stop(); err != nil {
			say("stopping PostgreSQL: %v", err)
		}
	}
}

// freePort finds a port below those that the system gives to connections going
// out: a server that comes back needs the very same one.
func freePort(ctx context.Context) (int, error) {
	for range 100 {
		port := 15000 + rand.N(17000)
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port")
}

func freeAddress(ctx context.Context) (string, error) {
	port, err := freePort(ctx)
	return "127.0.0.1:" + strconv.Itoa(port), err
}

// startSimulator makes the keys and starts the simulator, which makes its own.
func (c *cluster) startSimulator(ctx context.Context, b bureau) (err error) {
	keys := filepath.Join(c.dir, example, "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return err
	}
	keygen := exec.CommandContext(ctx, filepath.Join(c.dir, "server"), "keygen", "--dir", keys)
	if out, err := keygen.CombinedOutput(); err != nil {
		return fmt.Errorf("making keys: %w: %s", err, out)
	}
	var management string
	if c.d1, err = freeAddress(ctx); err == nil {
		management, err = freeAddress(ctx)
	}
	if err != nil {
		return err
	}
	c.management = d1sim.NewClient("http://"+management, &http.Client{Timeout: 30 * time.Second})
	if err := c.copyExample("d1sim.yaml", "d1sim.yaml", "127.0.0.1:8081", c.fromD1.Addr()); err != nil {
		return err
	}
	c.simulator, err = startLogged(c.dir, "d1sim.log", os.Environ(), filepath.Join(c.dir, "d1sim"),
		"--config", example+"/d1sim.yaml", "--encryption-key-file", simKey, "--listen", c.d1, "--management-listen", management)
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := c.management.PatchSettings(short, b.settings)
		if err == nil {
			return nil
		}
		if !sleep(short, 20*time.Millisecond) {
			return fmt.Errorf("waiting for the simulator: %w", err)
		}
	}
}

// changeTimeout is for how long D1's word on a change is waited for: if it got lost with a
// card that has left, nobody will ever know.
const changeTimeout = 30 * time.Second

// configure makes the replicas: the example configuration with shorter times, and
// every connection through a proxy.
func (c *cluster) configure(ctx context.Context, count int, b bureau) error {
	if err := c.copyExample("programs.yaml", "programs.yaml", "silentAfter: 24h", "silentAfter: "+b.silentAfter.String()); err != nil {
		return err
	}
	for i := range count {
		r := &replica{
			name: fmt.Sprintf("replica-%d", i+1), dir: c.dir,
			binary: filepath.Join(c.dir, "server"), config: fmt.Sprintf("%s/replica-%d.yaml", example, i+1),
		}
		var admin string
		for _, address := range []*string{&r.api, &r.notificationsAt, &admin} {
			var err error
			if *address, err = freeAddress(ctx); err != nil {
				return err
			}
		}
		for _, p := range []struct {
			proxy  **netfault.Proxy
			target string
		}{{&r.toAPI, r.api}, {&r.toDatabase, c.database.address()}, {&r.toD1, c.d1}} {
			var err error
			if *p.proxy, err = netfault.Listen(p.target); err != nil {
				return err
			}
		}
		c.replicas = append(c.replicas, r)
		database, err := url.Parse(c.database.server.URL(""))
		if err != nil {
			return errors.New("the database's URL cannot be read")
		}
		database.Host = r.toDatabase.Addr()
		r.env = append(os.Environ(), databaseURL+database.String())
		err = c.copyExample("server.yaml", filepath.Base(r.config),
			"127.0.0.1:8080", r.api, "127.0.0.1:8081", r.notificationsAt, "127.0.0.1:9090", admin, "127.0.0.1:8180", r.toD1.Addr(),
			"callTimeout: 30s", "callTimeout: "+b.callTimeout.String(), "resendAfter: 5m", "resendAfter: "+b.resendAfter.String(),
			"concurrency: 16", fmt.Sprintf("concurrency: %d", b.concurrency*count), "ratePerSecond: 0", fmt.Sprintf("ratePerSecond: %d", b.rate),
			"breakerThreshold: 5", fmt.Sprintf("breakerThreshold: %d", b.breakerThreshold),
			"stopAfterRefusals: 5", fmt.Sprintf("stopAfterRefusals: %d", b.stopAfterRefusals),
			"changeTimeout: 72h", "changeTimeout: "+changeTimeout.String(),
			"level: info", "level: debug", "poll: 1s", "poll: 200ms", "sensitiveData: false", "sensitiveData: true",
			"[orders:read, orders:write]", "[orders:read, orders:write, orders:operate]",
		)
		if err != nil {
			return err
		}
	}
	migrate := exec.CommandContext(ctx, filepath.Join(c.dir, "server"), "migrate", "up", "--config", c.replicas[0].config)
	migrate.Dir, migrate.Env = c.dir, c.replicas[0].env
	if out, err := migrate.CombinedOutput(); err != nil {
		return fmt.Errorf("migrating: %w: %s", err, out)
	}
	return nil
}

// copyExample copies a file of the example configuration, with some texts
// replaced; each of them has to be there.
func (c *cluster) copyExample(from, to string, replace ...string) error {
	text, err := os.ReadFile(filepath.Join(example, from))
	if err != nil {
		return fmt.Errorf("reading the example configuration: %w", err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(text), replace[i]) {
			return fmt.Errorf("%s of the example has no %q", from, replace[i])
		}
	}
	changed := strings.NewReplacer(replace...).Replace(string(text))
	return os.WriteFile(filepath.Join(c.dir, example, to), []byte(changed), 0o600)
}

func (c *cluster) readKeys() error {
	token, err := os.ReadFile(filepath.Join(c.dir, example, "keys", local.FileToken))
	if err != nil {
		return err
	}
	c.token = string(token)
	jwk, err := os.ReadFile(filepath.Join(c.dir, simKey+".pub.json"))
	if err != nil {
		return err
	}
	key, err := d1client.ParsePublicJWK(jwk)
	if err != nil {
		return err
	}
	c.encrypter, err = d1client.NewEncrypter(key)
	return err
}

// lead leads D1's new connections to a replica that is up, as a load balancer
// that looks at their health would.
func (c *cluster) lead(ctx context.Context) {
	for {
		var up []*replica
		for _, r := range c.replicas {
			if r.up() {
				up = append(up, r)
			}
		}
		if len(up) > 0 {
			c.fromD1.SetTarget(up[rand.N(len(up))].notificationsAt)
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return
		}
	}
}

// callers makes a client of each replica. Tries are left to the load, which goes
// to another replica with each.
func (c *cluster) callers(attempts int) ([]*client.Client, error) {
	clients := make([]*client.Client, len(c.replicas))
	for i, r := range c.replicas {
		var err error
		clients[i], err = client.New(client.Config{
			BaseURL: "http://" + r.toAPI.Addr(), IssuerID: issuer, Token: client.NewToken(strings.TrimSpace(c.token)),
			Timeout: 4 * time.Second, MaxAttempts: attempts, Backoff: 100 * time.Millisecond, MaxWait: time.Second,
		})
		if err != nil {
			return nil, err
		}
	}
	return clients, nil
}

// heal ends every fault of the networks and of D1.
func (c *cluster) heal(ctx context.Context, b bureau) error {
	proxies := []*netfault.Proxy{c.fromD1}
	for _, r := range c.replicas {
		proxies = append(proxies, r.toAPI, r.toDatabase, r.toD1)
	}
	var errs []error
	for _, p := range proxies {
		errs = append(errs, p.Heal())
	}
	settings := maps.Clone(b.settings)
	// What gets lost, gets lost for ever: only asking finds it.
	settings["faults"] = map[string]any{"seed": b.noise["seed"], "lostNotifications": b.losing}
	_, err := c.management.PatchSettings(ctx, settings)
	errs = append(errs, err, c.management.ClearScripts(ctx))
	for _, r := range c.replicas {
		errs = append(errs, r.awaitReady(ctx, time.Minute))
	}
	return errors.Join(errs...)
}
