package d1client

import (
	"context"
	"net/http"
	"regexp"
)

// Change asks D1 to change an order of a card that is under way (pull & change): to
// cancel, hasten or redirect it. Taken means that D1 has the request; whether the
// centre does it, a notification tells later.
//
// It is as [Client.Produce], but every 4xx is a refusal save 401, 408, 425 and 429: to
// ask for the same change twice does no harm, so nothing has to be left open when D1
// says no.
func (c *Client) Change(ctx context.Context, p Call) Answer {
	return c.post(ctx, c.paths.change, p, refusesChange)
}

func refusesChange(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= 400 && status <= 499
}

// ChangePath is the default of [Config.ChangePath].
func (s PathStyle) ChangePath() string { return pathStyles[s].change }

var changePathPattern = regexp.MustCompile(`^[A-Za-z0-9_:-]{1,64}(/[A-Za-z0-9_:-]{1,64}){0,3}$`)

// IsChangePath tells whether path may be a [Config.ChangePath].
func IsChangePath(path string) bool { return changePathPattern.MatchString(path) }
