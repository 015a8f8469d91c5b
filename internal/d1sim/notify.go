package d1sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	notificationTimeout = 10 * time.Second // of one call; D1's own is not known
	maxBackoffDoublings = 5                // so a wait is at most 32 times Settings.RetryBackoff
)

// target is where an issuer's notifications go.
type target struct{ notificationsURL, tokenURL, clientID, clientSecret string }

// bearer is a token of the issuer's token endpoint, kept until it expires.
type bearer struct {
	text    string
	expires time.Time
}

// notification is one step of one operation on its way to the issuer.
type notification struct {
	op         Operation // as it was at that step
	attempts   int
	again      bool // to be delivered twice, by Settings.Faults
	secondTime bool // delivered once already, on its way again
}

// Delivery is one notification call.
type Delivery struct {
	Time       time.Time   `json:"time"`
	IssuerID   string      `json:"issuerId"`
	Count      int         `json:"count"`           // operations in the call
	Status     int         `json:"status"`          // what the issuer answered; 0 when there was no answer
	Attempts   int         `json:"attempts"`        // the most that one of its operations has had, this one included
	Error      string      `json:"error,omitempty"` // why it does not count as delivered
	Operations []Delivered `json:"operations"`
}

// Delivered is one operation in a notification call.
type Delivered struct {
	OperationID     string `json:"operationId"`
	Operation       string `json:"operation"` // PRODUCE or UPDATE_ORDER
	CardID          string `json:"cardId"`
	IssuerRequestID string `json:"issuerRequestId,omitempty"` // also when it was left out of the call
	Status          string `json:"status,omitempty"`          // details.status: CARD_SHIPPED, ...
	OperationStatus string `json:"operationStatus"`           // PENDING, SUCCESSFUL, FAILED
}

func notificationClient(towardsIssuers *tls.Config) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = towardsIssuers
	return &http.Client{
		Transport:     transport,
		Timeout:       notificationTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// SetNotificationTarget says where an issuer's notifications go: the full notification URL, and the token endpoint with
// its Basic credentials (empty: no token).
func (s *Sim) SetNotificationTarget(issuerID, notificationsURL, tokenURL, clientID, clientSecret string) error {
	iss := s.issuers[issuerID]
	if iss == nil {
		return fmt.Errorf("issuer %q is not configured", issuerID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	iss.target = target{notificationsURL, tokenURL, clientID, clientSecret}
	iss.token = bearer{}
	s.announce()
	return nil
}

// notify delivers an issuer's notifications, batch by batch, for ever: at least once, so a batch that was not answered
// 204 goes back to the end of the queue.
func (s *Sim) notify(ctx context.Context, iss *issuer) {
	failures := 0
	for {
		batch, from := s.nextBatch(ctx, iss)
		if batch == nil {
			return
		}
		status, err := s.call(ctx, iss, s.render(batch))
		s.settle(ctx, iss, from, batch, status, err)
		s.log.InfoContext(ctx, "notification", slog.String("issuer_id", iss.id), slog.Int("operations", len(batch)),
			slog.Int("status", status), slog.Int("failures_before", failures), slog.Any("error", err))
		if err == nil {
			failures = 0
			continue
		}
		backoff := time.Duration(s.Settings().RetryBackoff) << min(failures, maxBackoffDoublings)
		if !pause(ctx, backoff) {
			return
		}
		failures++
	}
}

// nextBatch waits for notifications that may go and takes them off the queue; nil when ctx ended.
func (s *Sim) nextBatch(ctx context.Context, iss *issuer) ([]*notification, *book) {
	for ctx.Err() == nil {
		s.mu.Lock()
		batch, from, changed := s.takeBatch(iss), s.book, s.changed
		s.mu.Unlock()
		if len(batch) > 0 {
			return batch, from
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return nil, nil
}

// takeBatch is called with mu held.
func (s *Sim) takeBatch(iss *issuer) []*notification {
	queue := s.book.queued[iss.id]
	if s.settings.HoldNotifications || iss.target.notificationsURL == "" || len(queue) == 0 {
		return nil
	}
	count := min(len(queue), s.settings.MaxPerCall)
	var batch []*notification
	if s.settings.ReverseNotifications {
		batch = slices.Clone(queue[len(queue)-count:])
		slices.Reverse(batch)
		queue = queue[:len(queue)-count]
	} else {
		batch = slices.Clone(queue[:count])
		queue = queue[count:]
	}
	s.book.queued[iss.id] = queue
	s.book.inFlight += count
	return batch
}

func (s *Sim) render(batch []*notification) []byte {
	set := s.Settings()
	call := operations{}
	for _, n := range batch {
		call.Operations = append(call.Operations, n.op.placed(set, set.NotifyWithoutRequestIDs))
	}
	body, err := json.Marshal(call)
	if err != nil {
		panic(err) // our own types: always a mistake in this package
	}
	return body
}

// settle writes down how a call went and queues again what must be delivered again. A batch taken before a reset is
// forgotten.
func (s *Sim) settle(ctx context.Context, iss *issuer, from *book, batch []*notification, status int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.book != from {
		return
	}
	from.inFlight -= len(batch)
	defer s.announce()
	if err != nil && ctx.Err() != nil { // stopped, not failed
		from.queued[iss.id] = append(from.queued[iss.id], batch...)
		return
	}

	delivery := Delivery{Time: time.Now().UTC(), IssuerID: iss.id, Count: len(batch), Status: status}
	if err != nil {
		delivery.Error = err.Error()
	}
	for _, n := range batch {
		n.attempts++
		delivery.Attempts = max(delivery.Attempts, n.attempts)
		delivery.Operations = append(delivery.Operations,
			Delivered{n.op.OperationID, n.op.Operation, n.op.CardID, n.op.IssuerRequestID, n.op.Details.Status, n.op.Status})
		switch {
		case err != nil:
			from.queued[iss.id] = append(from.queued[iss.id], n)
		case (s.settings.DuplicateNotifications || n.again) && !n.secondTime:
			from.queued[iss.id] = append(from.queued[iss.id], &notification{op: n.op, secondTime: true})
		}
	}
	from.deliveries = append(forgetHalf(from.deliveries), delivery)
}

// SendNotification posts a body of the caller's making to an issuer's notification endpoint, with a token like any
// notification, and returns the status that was answered. The body need not be valid in any way.
func (s *Sim) SendNotification(ctx context.Context, issuerID string, body []byte) (int, error) {
	iss := s.issuers[issuerID]
	if iss == nil {
		return 0, fmt.Errorf("issuer %q is not configured", issuerID)
	}
	status, err := s.call(ctx, iss, body)
	if status != 0 {
		return status, nil // an answer other than 204 is what the caller wants to know
	}
	return 0, err
}

// call posts one body; no error means it was delivered: answered 204 and nothing else. A 401 is tried once more with a
// new token.
func (s *Sim) call(ctx context.Context, iss *issuer, body []byte) (status int, err error) {
	s.mu.Lock()
	to := iss.target
	s.mu.Unlock()
	for range 2 {
		var token string
		if token, err = s.bearer(ctx, iss, to); err != nil {
			return 0, err
		}
		if status, err = s.post(ctx, to.notificationsURL, token, body); status != http.StatusUnauthorized {
			break
		}
		s.mu.Lock()
		iss.token = bearer{}
		s.mu.Unlock()
	}
	return status, err
}

func (s *Sim) post(ctx context.Context, url, token string, body []byte) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, withoutURL(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Correlation-Id", uuid.NewString())
	req.Header.Set("X-Simulator", "d1sim")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, withoutURL(err)
	}
	defer resp.Body.Close()
	content, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // read, so that the connection can be used again
	if resp.StatusCode != http.StatusNoContent || len(content) > 0 {
		return resp.StatusCode, fmt.Errorf("answered %d with %d bytes, not 204 with none", resp.StatusCode, len(content))
	}
	return resp.StatusCode, nil
}

// bearer returns the issuer's token, fetching a new one when there is none that lasts.
func (s *Sim) bearer(ctx context.Context, iss *issuer, to target) (string, error) {
	if to.tokenURL == "" {
		return "", nil
	}
	s.mu.Lock()
	cached := iss.token
	s.mu.Unlock()
	if time.Now().Before(cached.expires) {
		return cached.text, nil
	}
	fresh, err := s.fetchBearer(ctx, to)
	if err != nil {
		return "", fmt.Errorf("token endpoint: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if iss.target == to {
		iss.token = fresh
	}
	return fresh.text, nil
}

// fetchBearer asks the issuer's token endpoint, holding it to the contract: expires_in is a string there.
func (s *Sim) fetchBearer(ctx context.Context, to target) (bearer, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.tokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return bearer{}, withoutURL(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-Simulator", "d1sim")
	req.SetBasicAuth(to.clientID, to.clientSecret)
	resp, err := s.http.Do(req)
	if err != nil {
		return bearer{}, withoutURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return bearer{}, fmt.Errorf("answered %d", resp.StatusCode)
	}

	var grant struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   string `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&grant); err != nil {
		return bearer{}, errors.New("answer is not JSON of access_token, token_type and expires_in, all strings")
	}
	seconds, err := strconv.Atoi(grant.ExpiresIn)
	if err != nil || seconds <= 0 || grant.TokenType != "Bearer" || grant.AccessToken == "" {
		return bearer{}, errors.New(`answer needs access_token, token_type "Bearer" and expires_in as a string of seconds`)
	}
	return bearer{grant.AccessToken, time.Now().Add(time.Duration(seconds) * time.Second)}, nil
}

// withoutURL keeps URLs, which may carry credentials, out of logs and of the management port.
func withoutURL(err error) error {
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		return urlErr.Err
	}
	return err
}

// Notifications lists the notification calls since the last reset, oldest first. Those of SendNotification are not
// among them.
func (s *Sim) Notifications() []Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Delivery{}, s.book.deliveries...)
}
