package d1sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Client speaks to a simulator's management port.
type Client struct {
	base string
	http *http.Client
}

// NewClient returns a client of the management port at baseURL. A nil HTTP client means http.DefaultClient; one with a
// timeout cuts Wait short.
func NewClient(baseURL string, client *http.Client) *Client {
	defaultTo(&client, http.DefaultClient)
	return &Client{base: strings.TrimSuffix(baseURL, "/"), http: client}
}

// Settings returns the settings in force.
func (c *Client) Settings(ctx context.Context) (Settings, error) {
	var set Settings
	err := c.do(ctx, http.MethodGet, "/settings", nil, &set)
	return set, err
}

// PatchSettings changes the members that are in the patch, a map or a struct of the JSON names, and returns the settings
// in force after it.
func (c *Client) PatchSettings(ctx context.Context, patch any) (Settings, error) {
	var set Settings
	err := c.do(ctx, http.MethodPatch, "/settings", patch, &set)
	return set, err
}

// UpdateSettings reads the settings, changes them and writes them all: not for two writers at a time.
func (c *Client) UpdateSettings(ctx context.Context, change func(*Settings)) error {
	set, err := c.Settings(ctx)
	if err != nil {
		return err
	}
	change(&set)
	return c.do(ctx, http.MethodPatch, "/settings", set, nil)
}

// EncryptionKey returns the public key that encryptedData is encrypted for.
func (c *Client) EncryptionKey(ctx context.Context) (jose.JSONWebKey, error) {
	var key jose.JSONWebKey
	err := c.do(ctx, http.MethodGet, "/encryption-key", nil, &key)
	return key, err
}

// History lists the requests since the last reset that fit the filter, oldest first.
func (c *Client) History(ctx context.Context, f Filter) ([]Request, error) {
	query := Condition{Kind: f.Kind, IssuerRequestID: f.IssuerRequestID, CardID: f.CardID}.query()
	var requests []Request
	err := c.do(ctx, http.MethodGet, "/history?"+query.Encode(), nil, &requests)
	return requests, err
}

// Cards lists the cards made since the last reset, oldest first.
func (c *Client) Cards(ctx context.Context) ([]Card, error) {
	var cards []Card
	err := c.do(ctx, http.MethodGet, "/cards", nil, &cards)
	return cards, err
}

// CardsOf lists the cards made for an issuer since the last reset, oldest first: one for each operation.
func (c *Client) CardsOf(ctx context.Context, issuerID string) ([]Card, error) {
	var cards []Card
	err := c.do(ctx, http.MethodGet, "/cards?"+url.Values{"issuerId": {issuerID}}.Encode(), nil, &cards)
	return cards, err
}

// Changes lists the changes taken since the last reset, oldest first.
func (c *Client) Changes(ctx context.Context) ([]Change, error) {
	var changes []Change
	err := c.do(ctx, http.MethodGet, "/changes", nil, &changes)
	return changes, err
}

// Move puts a card into a status and queues the notification of it.
func (c *Client) Move(ctx context.Context, m Move) error {
	return c.do(ctx, http.MethodPost, "/cards/move", m, nil)
}

// FaultCounts tells how many requests and notifications met each fault of Settings.Faults since the last reset.
func (c *Client) FaultCounts(ctx context.Context) (map[Fault]int, error) {
	var counts map[Fault]int
	err := c.do(ctx, http.MethodGet, "/faults", nil, &counts)
	return counts, err
}

// RevokeTokens ends all access tokens before their time: requests that carry one get 401.
func (c *Client) RevokeTokens(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/tokens", nil, nil)
}

// CardCounts tells how many cards were made for each issuerRequestId.
func (c *Client) CardCounts(ctx context.Context) (map[string]int, error) {
	var counts map[string]int
	err := c.do(ctx, http.MethodGet, "/cards/counts", nil, &counts)
	return counts, err
}

// Script queues a script.
func (c *Client) Script(ctx context.Context, sc Script) error {
	return c.do(ctx, http.MethodPost, "/script", sc, nil)
}

// Scripts lists the scripts not used up yet.
func (c *Client) Scripts(ctx context.Context) ([]Script, error) {
	var scripts []Script
	err := c.do(ctx, http.MethodGet, "/script", nil, &scripts)
	return scripts, err
}

// ClearScripts forgets the scripts not used up yet.
func (c *Client) ClearScripts(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/script", nil, nil)
}

// Tell queues the notification of an operation that no order leads to, as STANDALONE_TRACKING, and returns its
// operationId.
func (c *Client) Tell(ctx context.Context, issuerID string, op Operation) (operationID string, err error) {
	var answer struct {
		OperationID string `json:"operationId"`
	}
	err = c.do(ctx, http.MethodPost, "/operations?"+url.Values{"issuerId": {issuerID}}.Encode(), op, &answer)
	return answer.OperationID, err
}

// SendNotification posts a raw body to an issuer's notification endpoint and returns the status answered.
func (c *Client) SendNotification(ctx context.Context, issuerID string, body []byte) (int, error) {
	var answer struct {
		Status int `json:"status"`
	}
	path := "/notifications?" + url.Values{"issuerId": {issuerID}}.Encode()
	err := c.send(ctx, http.MethodPost, path, bytes.NewReader(body), &answer)
	return answer.Status, err
}

// Notifications lists the notification calls since the last reset, oldest first.
func (c *Client) Notifications(ctx context.Context) ([]Delivery, error) {
	var deliveries []Delivery
	err := c.do(ctx, http.MethodGet, "/notifications", nil, &deliveries)
	return deliveries, err
}

// Reset forgets all but access tokens and goes back to the settings of the start.
func (c *Client) Reset(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/reset", nil, nil)
}

// Wait returns once the condition holds, or an error that is ErrNotMet after the timeout: 5 minutes at most.
func (c *Client) Wait(ctx context.Context, condition Condition, timeout time.Duration) error {
	query := condition.query()
	query.Set("timeout", timeout.String())
	return c.do(ctx, http.MethodGet, "/wait?"+query.Encode(), nil, nil)
}

// do sends a JSON body, if there is one.
func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	if body == nil {
		return c.send(ctx, method, path, nil, into)
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.send(ctx, method, path, bytes.NewReader(text), into)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusMultipleChoices {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if resp.StatusCode == http.StatusRequestTimeout {
			return fmt.Errorf("%w: %s", ErrNotMet, path)
		}
		return fmt.Errorf("d1sim: %s %s: %d %s", method, path, resp.StatusCode, bytes.TrimSpace(text))
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
