//go:build linux

package daemon

import (
	"cmp"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how commands run that do not say it themselves, and
// PUT /config, by which the server changes that.

// Config is what a runtime tells the daemon it places.
type Config struct {
	Base    map[string]string `json:"base"`     // environment of every command, below all that follows
	Env     map[string]string `json:"env"`      // environment of every command, over that of the account and below the request's own
	User    string            `json:"user"`     // who runs commands and reads and writes files (§16.3): name, uid, name:group or uid:gid; default the daemon's own
	WorkDir string            `json:"work_dir"` // where commands run that name no directory; default Home
	Home    string            `json:"home"`     // $HOME, and the base of relative file paths (§5)
	Times   Times             `json:"times"`    // other than the usual
	Bounds  Bounds            `json:"-"`        // of the sandbox; PUT /config does not change them
}

// Times are how long things take; zero is the usual. Tests of what stands above
// the daemon change them, so as not to wait.
type Times struct {
	Search time.Duration `json:"search"` // for one search; 20 s
	Ping   time.Duration `json:"ping"`   // between two pings to a client; 30 s
	Pong   time.Duration `json:"pong"`   // without a sign of life from it; 75 s
}

// searchTime, pingTime and pongTime are the times that hold now.
func (d *daemon) searchTime() time.Duration { return cmp.Or(d.cfg.Load().Times.Search, d.lim.search) }
func (d *daemon) pingTime() time.Duration   { return cmp.Or(d.cfg.Load().Times.Ping, d.lim.ping) }
func (d *daemon) pongTime() time.Duration   { return cmp.Or(d.cfg.Load().Times.Pong, d.lim.pong) }

func (c *Config) complete() {
	if c.WorkDir == "" {
		c.WorkDir = c.Home
	}
}

// configure replaces the configuration, for commands that start from now on.
// Base and Home, which the runtime knows, stay as they are unless new ones are
// given.
func (d *daemon) configure(w http.ResponseWriter, r *http.Request) {
	var cfg Config
	if err := d.readJSON(w, r, &cfg); err != nil {
		answer(w, err)
		return
	}
	placed := d.cfg.Load()
	if cfg.Base == nil {
		cfg.Base = placed.Base
	}
	if cfg.Home == "" {
		cfg.Home = placed.Home
	}
	cfg.complete()
	if err := cfg.check(); err != nil {
		answer(w, err)
		return
	}
	d.cfg.Store(&cfg)
	w.WriteHeader(http.StatusNoContent)
}

func (c *Config) check() error {
	for _, dir := range []struct{ field, path string }{{"home", c.Home}, {"work_dir", c.WorkDir}} {
		if !filepath.IsAbs(dir.path) || strings.Contains(dir.path, "\x00") {
			return refuse(wire.ErrInvalidRequest, "%s is %q: give an absolute path", dir.field, dir.path)
		}
	}
	if t := c.Times; min(t.Search, t.Ping, t.Pong) < 0 {
		return refuse(wire.ErrInvalidRequest, "a time is negative: give nanoseconds, or 0 for the usual")
	}
	if err := checkUser(c.User); err != nil {
		return err
	}
	if err := checkEnv(c.Base); err != nil {
		return err
	}
	return checkEnv(c.Env)
}

// checkEnv refuses what no process can have in its environment.
func checkEnv(env map[string]string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return refuse(wire.ErrInvalidRequest, "the environment variable %q cannot be set: names hold no = and are not empty, and neither names nor values hold a zero byte", name)
		}
	}
	return nil
}
