package main

import (
	"bufio"
	"context"
	"crypto/md5" //nolint:gosec // ids in no order, as PostgreSQL makes them too
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardorder/internal/local"
)

// Intake is measured with orders that D1 has: it tells of each, one step after the other.
// A notification that moves an order writes a row of its own, an event, and the order's
// state. pgbench writes the very same rows, in statements of as many as a call has.

// intakeOrders is how many orders are under way; a multiple of every call's size.
const intakeOrders = 100_000

// intakeBulk is how many operations a large call has.
const intakeBulk = 100

// Names of the runs.
const (
	nameIntakeBulk    = "intake, 100 a call"
	namePgbenchBulk   = "pgbench, 100 rows"
	nameIntakeSingle  = "intake, 1 a call"
	namePgbenchSingle = "pgbench, 1 row"
)

// intake is what all its runs share.
type intake struct {
	*bench
	token string
	rows  *captured // of one notification: its own, the event's and the state's

	onWarm func() // while intake is profiled
}

func (b *bench) newIntake(ctx context.Context) (*intake, error) {
	in := &intake{bench: b}
	var err error
	if in.token, err = b.server.notificationToken(ctx, b.site.keys); err != nil {
		return nil, err
	}
	if err := in.fillUnderWay(ctx, intakeBulk); err != nil {
		return nil, err
	}
	if err := b.captureIntake(ctx, in); err != nil {
		return nil, err
	}
	return in, nil
}

// notificationToken fetches a token as D1 does.
func (v *service) notificationToken(ctx context.Context, keys local.Keys) (string, error) {
	secret, err := keys.Read(local.FileD1ClientSecret)
	if err != nil {
		return "", err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.notifications+"/authz/d1/v1/oauth2/token",
		strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("d1", secret)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&answer); err != nil || answer.AccessToken == "" {
		return "", fmt.Errorf("no token for notifications: status %d, %w", res.StatusCode, err)
	}
	return answer.AccessToken, nil
}

// measureIntake measures it, and pgbench beside it.
func (b *bench) measureIntake(ctx context.Context) error {
	if !b.wants("intake") {
		return nil
	}
	in, err := b.newIntake(ctx)
	if err != nil {
		return err
	}
	var all []measurement
	for _, c := range []struct {
		size, clients int
		ours, theirs  string
	}{
		{intakeBulk, 4, nameIntakeBulk, namePgbenchBulk}, {intakeBulk, 16, nameIntakeBulk, namePgbenchBulk},
		{1, 64, nameIntakeSingle, namePgbenchSingle},
	} {
		all = append(all, func() (*result, error) { return in.measure(ctx, c.ours, c.size, c.clients) })
		if b.pgbench != nil {
			all = append(all, func() (*result, error) { return in.measurePgbench(ctx, c.theirs, c.size, c.clients) })
		}
	}
	if err := b.measureRounds(all); err != nil {
		return err
	}
	if b.profile == "" {
		return nil
	}
	for _, size := range []int{1, intakeBulk} {
		if err := in.profileRun(ctx, size); err != nil {
			return err
		}
	}
	return nil
}

// profileRun writes profiles of a run of its own.
func (in *intake) profileRun(ctx context.Context, size int) error {
	if err := os.MkdirAll(in.profile, 0o750); err != nil {
		return err
	}
	var profiling sync.WaitGroup
	var failed error
	in.onWarm = func() {
		profiling.Go(func() {
			seconds, name := max(1, int(in.duration.Seconds())), fmt.Sprintf("intake-%d", size)
			failed = errors.Join(
				in.fetchProfile(ctx, in.server, fmt.Sprintf("profile?seconds=%d", seconds), name+".cpu.pprof"),
				in.fetchProfile(ctx, in.server, "allocs", name+".allocs.pprof"))
		})
	}
	defer func() { in.onWarm = nil }()
	_, err := in.measure(ctx, "profile", size, 16)
	profiling.Wait()
	return errors.Join(err, failed)
}

// fillUnderWay empties the tables and puts orders there that D1 has taken.
func (in *intake) fillUnderWay(ctx context.Context, to int) error {
	if err := in.db.reset(ctx); err != nil {
		return err
	}
	return in.addUnderWay(ctx, 1, to)
}

func (in *intake) addUnderWay(ctx context.Context, from, to int) error {
	e := manyOrders
	series := fmt.Sprintf("generate_series(%d, %d) n", from, to)
	statements := []string{"SET synchronous_commit = off"}
	for _, r := range in.bench.rows.rows {
		source := series
		switch r.table {
		case "outbox":
			continue
		case "order_events":
			source += ", generate_series(1, 2) event"
		}
		statements = append(statements, in.bench.rows.insertMany(r, e, source, map[string]string{
			"order_events.seq": "event", "order_state.version": "2", "order_state.status": "'SUBMITTED'",
			"order_state.rank": "10", "order_state.step_rank": "10", "order_state.top_rank": "10",
			"order_state.operation_id": e.key, "order_state.first_sent_at": e.now,
			// Not to be looked at while intake is measured, and sooner than what it would say.
			"order_state.next_check_at": "now() + interval '1 h'",
		}))
	}
	statements = append(statements, `INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
		SELECT '`+issuerID+`', `+e.key+`, (`+e.order+`)::uuid, 'PRODUCE', 'submit' FROM `+series, "RESET synchronous_commit", "ANALYZE", "CHECKPOINT")
	for _, sql := range statements {
		if _, err := in.db.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("making orders that D1 has: %w", err)
		}
	}
	return nil
}

// captureIntake lets the service take one notification and reads back what it wrote.
func (b *bench) captureIntake(ctx context.Context, in *intake) error {
	c, err := in.connect(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { _ = c.conn.Close() }()
	if status, err := c.send(0, 0); err != nil || status != http.StatusNoContent {
		return fmt.Errorf("a notification was answered %d, %w", status, err)
	}
	in.rows = &captured{ids: b.rows.ids}
	err = b.db.conn.QueryRow(ctx, `SELECT order_id::text FROM notifications WHERE outcome = 'applied'`).Scan(&in.rows.orderID)
	if err != nil {
		return fmt.Errorf("looking for the notification: %w", err)
	}
	for table, where := range map[string]string{
		"notifications": "order_id = $1::uuid", "order_events": "order_id = $1::uuid AND cause = 'notification'", "order_state": "order_id = $1::uuid",
	} {
		rows, err := b.db.read(ctx, table, where, in.rows.orderID)
		if err != nil {
			return err
		}
		if len(rows) != 1 {
			return fmt.Errorf("one notification left %d rows in %s", len(rows), table)
		}
		in.rows.rows = append(in.rows.rows, rows...)
	}
	return nil
}

// intakeClient is one connection of D1.
type intakeClient struct {
	conn   net.Conn
	in     *bufio.Reader
	head   string
	size   int
	body   []byte
	text   []byte
	took   []time.Duration
	failed map[string]int
}

func (in *intake) connect(ctx context.Context, size int) (*intakeClient, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", in.server.notifications)
	if err != nil {
		return nil, fmt.Errorf("connecting to the service: %w", err)
	}
	return &intakeClient{
		conn: conn, in: bufio.NewReaderSize(conn, 4<<10), size: size, failed: make(map[string]int),
		head: "POST /notifications/d1/v2/issuers/" + issuerID + "/cards HTTP/1.1\r\nHost: " + in.server.notifications +
			"\r\nAuthorization: Bearer " + in.token + "\r\nContent-Type: application/json\r\nContent-Length: ",
	}, nil
}

// block returns the first order and the step of a call: all orders do one step before
// any does the next.
func block(call int64, size int) (order, step int) {
	first := int(call) * size
	return first % intakeOrders, first / intakeOrders
}

// send tells of a step of orders from one on.
func (c *intakeClient) send(order, step int) (status int, err error) {
	b := append(c.body[:0], `{"operations":[`...)
	for i := range c.size {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendOperation(b, order+i+1, step)
	}
	c.body = append(b, "]}"...)
	c.text = append(strconv.AppendInt(append(c.text[:0], c.head...), int64(len(c.body)), 10), "\r\n\r\n"...)
	c.text = append(c.text, c.body...)
	if _, err := c.conn.Write(c.text); err != nil {
		return 0, err
	}
	return readAnswer(c.in)
}

var stepNames = []string{"DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING"}

// firstDue is the first shipping date: to come, since an order whose day has passed is
// looked at at once, and a queue of a hundred thousand that are late is not what is measured.
var firstDue = time.Now().UTC().AddDate(0, 2, 0)

// appendOperation writes what D1 says of order n of manyOrders. After the last of the
// steps the shipping date is put off from day to day.
func appendOperation(b []byte, n, step int) []byte {
	b = appendID(append(b, `{"operationId":"`...), n, "key")
	b = append(b, `","operation":"PRODUCE","status":"PENDING","startTime":"2026-01-02T03:04:05.678Z","cardId":"`...)
	b = appendID(b, n, "card")
	b = appendID(append(b, `","issuerRequestId":"`...), n, "request")
	b = append(append(b, `","details":{"status":"`...), stepNames[min(step, len(stepNames)-1)]...)
	b = firstDue.AddDate(0, 0, step).AppendFormat(append(b, `","dueDate":"`...), time.DateOnly)
	return append(b, `","productionSite":"GEMENOS"}}`...)
}

func appendID(b []byte, n int, what string) []byte {
	var text [40]byte
	sum := md5.Sum(append(strconv.AppendInt(text[:0], int64(n), 10), what...)) //nolint:gosec // as above
	return hex.AppendEncode(b, sum[:])
}

// measure measures calls of so many operations over so many connections.
func (in *intake) measure(ctx context.Context, name string, size, clients int) (*result, error) {
	if err := in.fillUnderWay(ctx, intakeOrders); err != nil {
		return nil, err
	}
	return in.drive(ctx, name, size, clients, in.duration)
}

func (in *intake) drive(ctx context.Context, name string, size, clients int, duration time.Duration) (*result, error) {
	var next, done atomic.Int64
	var counting, stopped atomic.Bool
	var wg sync.WaitGroup
	list := make([]*intakeClient, clients)
	for i := range list {
		c, err := in.connect(ctx, size)
		if err != nil {
			return nil, err
		}
		defer func() { _ = c.conn.Close() }()
		list[i] = c
	}
	for _, c := range list {
		wg.Go(func() {
			for !stopped.Load() {
				begun := time.Now()
				status, err := c.send(block(next.Add(1)-1, size))
				switch {
				case err != nil:
					c.failed[err.Error()]++
					return
				case status != http.StatusNoContent:
					c.failed["status "+strconv.Itoa(status)]++
					continue
				}
				done.Add(int64(size))
				if counting.Load() {
					c.took = append(c.took, time.Since(begun))
				}
			}
		})
	}
	defer func() {
		stopped.Store(true)
		wg.Wait()
	}()
	if err := pause(ctx, in.warm); err != nil {
		return nil, err
	}
	if in.onWarm != nil {
		in.onWarm()
	}
	if err := in.db.forgetStatements(ctx); err != nil {
		return nil, err
	}
	from, err := in.snapshot(ctx, in.server, &done)
	if err != nil {
		return nil, err
	}
	counting.Store(true)
	err = pause(ctx, duration)
	counting.Store(false)
	to, err2 := in.snapshot(ctx, in.server, &done)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	stopped.Store(true)
	wg.Wait()
	if err := in.printStatements(ctx); err != nil {
		return nil, err
	}
	r := &result{name: name, clients: clients, errs: make(map[string]int), cost: from.perOrder(to)}
	var all []time.Duration
	for _, c := range list {
		all = append(all, c.took...)
		for text, n := range c.failed {
			r.errs[text] += n
		}
	}
	r.orders = int(to.orders - from.orders)
	r.rate = float64(r.orders) / to.at.Sub(from.at).Seconds()
	r.p50, r.p99 = quantiles(all)
	var applied, events int64
	err = in.db.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM notifications WHERE outcome = 'applied'),
		(SELECT count(*) FROM order_events WHERE cause = 'notification')`).Scan(&applied, &events)
	if err != nil {
		return nil, err
	}
	if before := int64(in.notified); applied-before < done.Load() || events < done.Load() {
		return nil, fmt.Errorf("%s: %d operations were answered 204, %d applied, %d events", name, done.Load(), applied, events)
	}
	return r, nil
}

// pgbenchIntake writes the script of a transaction that stores so many.
func (in *intake) pgbenchIntake(size, clients int) (string, error) {
	e := manyOrders
	source := "generate_series(:first + 1, :first + " + strconv.Itoa(size) + ") n"
	var b strings.Builder
	fmt.Fprintf(&b, "\\set n :n + 1\n\\set at (:n * %d + :client_id) * %d\n\\set first :at %% %d\n\\set step :at / %d\nBEGIN;\n",
		clients, size, intakeOrders, intakeOrders)
	for _, r := range in.rows.rows {
		if r.table == "order_state" {
			b.WriteString(in.rows.updateMany(r, e, source, map[string]string{"version": "t.version + 1"}) + ";\n")
			continue
		}
		b.WriteString(in.rows.insertMany(r, e, source, map[string]string{
			"notifications.digest":            "decode(md5(n::text || '/' || :step::text) || md5(:step::text || '/' || n::text), 'hex')",
			"notifications.operation_id":      e.key,
			"notifications.card_id":           e.card,
			"notifications.issuer_request_id": e.request,
			"order_events.seq":                "3 + :step",
		}) + ";\n")
	}
	b.WriteString("COMMIT;\n")
	file := filepath.Join(in.dir, fmt.Sprintf("intake-%d-%d.sql", size, clients))
	return file, os.WriteFile(file, []byte(b.String()), 0o600)
}

// notificationsPerOrder is how many notifications an order that has arrived has, at least.
const notificationsPerOrder = 3

// oldNotifications writes the notifications of orders that have arrived.
func (in *intake) oldNotifications(e expressions, from, to int) string {
	for _, r := range in.rows.rows {
		if r.table == "notifications" {
			return in.rows.insertMany(r, e, fmt.Sprintf("generate_series(%d, %d) n, generate_series(1, %d) step", from, to, notificationsPerOrder), map[string]string{
				"notifications.digest":            "decode(md5(n::text || '/' || step::text) || md5(step::text || '/' || n::text), 'hex')",
				"notifications.operation_id":      e.key,
				"notifications.card_id":           e.card,
				"notifications.issuer_request_id": e.request,
			})
		}
	}
	return ""
}

// updateMany writes what r has to the rows of source.
func (c *captured) updateMany(r row, e expressions, source string, other map[string]string) string {
	var set []string
	for _, col := range r.columns {
		value, ok := other[col.name]
		switch {
		case slices.Contains([]string{"issuer_id", "order_id", "operation_id", "next_check_at"}, col.name): // which stay as they are
			continue
		case !ok:
			value = c.expression(col, e)
		}
		set = append(set, quote(col.name)+" = "+value)
	}
	return "UPDATE " + quote(r.table) + " t SET " + strings.Join(set, ", ") + " FROM " + source +
		" WHERE t.issuer_id = '" + issuerID + "' AND t.order_id = (" + e.order + ")::uuid"
}

func (in *intake) measurePgbench(ctx context.Context, name string, size, clients int) (*result, error) {
	if err := in.fillUnderWay(ctx, intakeOrders); err != nil {
		return nil, err
	}
	script, err := in.pgbenchIntake(size, clients)
	if err != nil {
		return nil, err
	}
	p, err := in.pgbench.startScript(ctx, in.db.conn, clients, script, -1)
	if err != nil {
		return nil, err
	}
	from, to, err := func() (from, to snapshot, err error) {
		if err := pause(ctx, in.warm); err != nil {
			return from, to, err
		}
		if from, err = in.snapshotPgbench(ctx, p); err != nil {
			return from, to, err
		}
		if err := pause(ctx, in.duration); err != nil {
			return from, to, err
		}
		to, err = in.snapshotPgbench(ctx, p)
		return from, to, err
	}()
	if err := errors.Join(err, p.stop(ctx, in.db.conn)); err != nil {
		return nil, err
	}
	from.orders, to.orders = from.orders*int64(size), to.orders*int64(size)
	n := to.orders - from.orders
	var stored, moved int64
	err = in.db.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM notifications), (SELECT sum(version - 2) FROM order_state)`).Scan(&stored, &moved)
	if err != nil {
		return nil, err
	}
	if stored < n || moved < n {
		return nil, fmt.Errorf("pgbench made %d rows, and %d are stored, %d states", n, stored, moved)
	}
	rate := float64(n) / to.at.Sub(from.at).Seconds()
	return &result{
		name: name, clients: clients, orders: int(n), rate: rate,
		p50: time.Duration(float64(clients*size) / rate * float64(time.Second)), cost: from.perOrder(to),
	}, nil
}
