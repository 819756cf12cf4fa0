//go:build linux

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines who runs commands, and reads and writes files (§16.3).

// account is whom a command runs as. A nil one is the daemon's own.
type account struct {
	uid, gid uint32
	groups   []uint32 // the supplementary ones
	name     string   // "" if the sandbox has no such account, as is home
	home     string
	own      bool // the same user and group as the daemon's
}

// checkUser refuses what is not of the form name, uid, name:group or uid:gid.
func checkUser(text string) error {
	name, group, grouped := strings.Cut(text, ":")
	if name == "" && text != "" || grouped && group == "" || strings.ContainsAny(group, ":") || strings.ContainsAny(text, "\x00\n") {
		return refuse(wire.ErrInvalidRequest, "the user is %q: give a name or a number, and perhaps a colon and a group", text)
	}
	return nil
}

// lookup finds the account that text names. It must be one that the daemon can
// become. "" is nil.
func lookup(text string) (*account, error) {
	if err := checkUser(text); err != nil || text == "" {
		return nil, err
	}
	name, group, grouped := strings.Cut(text, ":")
	a := &account{}
	entry, err := user.Lookup(name)
	id, numeric := parseID(name)
	if err != nil && numeric {
		entry, err = user.LookupId(name)
	}
	switch {
	case err == nil:
		a.name, a.home = entry.Username, entry.HomeDir
		uid, uidOK := parseID(entry.Uid)
		gid, gidOK := parseID(entry.Gid)
		if !uidOK || !gidOK {
			return nil, refuse(wire.ErrCommand, "the user is %q, whose entry in this sandbox has no proper ids", text)
		}
		a.uid, a.gid = uid, gid
	case numeric && int(id) == os.Getuid():
		a.uid, a.gid = id, uint32(os.Getgid())
	case numeric: // of group 0, as in images (layer 1)
		a.uid = id
	case missing(err):
		return nil, refuse(wire.ErrCommand, "the user is %q, and this sandbox has none of that name: give another one, or a number", text)
	default:
		return nil, refuse(wire.ErrCommand, "the user is %q, which cannot be looked up: %v", text, err)
	}
	if grouped {
		if a.gid, err = lookupGroup(group, text); err != nil {
			return nil, err
		}
	} else if entry != nil {
		ids, _ := entry.GroupIds() // without a list of groups there are none
		for _, id := range ids {
			if gid, ok := parseID(id); ok {
				a.groups = append(a.groups, gid)
			}
		}
	}
	a.own = int(a.uid) == os.Getuid() && int(a.gid) == os.Getgid()
	if !a.own {
		if err := a.reachable(); err != nil {
			return nil, refuse(wire.ErrCommand, "the user is %q, but commands of this sandbox can only run as user %d of group %d, %v: leave user out",
				text, os.Getuid(), os.Getgid(), err)
		}
	}
	return a, nil
}

func lookupGroup(name, text string) (uint32, error) {
	entry, err := user.LookupGroup(name)
	id, numeric := parseID(name)
	switch {
	case err == nil:
		if gid, ok := parseID(entry.Gid); ok {
			return gid, nil
		}
	case numeric:
		return id, nil
	case !missing(err):
		return 0, refuse(wire.ErrCommand, "the user is %q, whose group cannot be looked up: %v", text, err)
	}
	return 0, refuse(wire.ErrCommand, "the user is %q, and this sandbox has no such group: give another one, or a number", text)
}

// parseID reads a uid or gid; the highest number means none.
func parseID(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32
}

// missing reports whether a search ended without a find.
func missing(err error) bool {
	_, noUser := errors.AsType[user.UnknownUserError](err)
	_, noID := errors.AsType[user.UnknownUserIdError](err)
	_, noGroup := errors.AsType[user.UnknownGroupError](err)
	return noUser || noID || noGroup || errors.Is(err, fs.ErrNotExist) // a sandbox without /etc/passwd
}

// reachable says why the daemon cannot become the account, if it cannot.
func (a *account) reachable() error {
	var caps [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err != nil {
		return fmt.Errorf("whose rights are unknown: %w", err)
	}
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	if caps[0].Effective&need != need {
		return errors.New("who may not become another")
	}
	if deny, _ := os.ReadFile("/proc/self/setgroups"); strings.HasPrefix(string(deny), "deny") {
		return errors.New("whose groups cannot be changed")
	}
	uids, _ := os.ReadFile("/proc/self/uid_map")
	gids, _ := os.ReadFile("/proc/self/gid_map")
	if !hasID(string(uids), a.uid) || !hasID(string(gids), a.gid) {
		return errors.New("because the sandbox has not got those ids")
	}
	a.groups = slices.DeleteFunc(a.groups, func(gid uint32) bool { return !hasID(string(gids), gid) })
	return nil
}

// hasID reports whether a file in the format of /proc/self/uid_map has an id.
func hasID(idMap string, id uint32) bool {
	for line := range strings.Lines(idMap) {
		var first, outside, count int64
		if n, _ := fmt.Sscan(line, &first, &outside, &count); n == 3 && int64(id) >= first && int64(id) < first+count {
			return true
		}
	}
	return idMap == "" // without /proc the kernel will say it
}

// describe sets what programs go by to learn who they run as. A number without
// an account is nobody's name.
func (a *account) describe(env map[string]string) {
	delete(env, "USER")
	delete(env, "LOGNAME")
	if a.name != "" {
		env["HOME"], env["USER"], env["LOGNAME"] = a.home, a.name, a.name
	}
}

// other reports whether the account is not the daemon's own.
func (a *account) other() bool { return a != nil && !a.own }

// credential is what a process of the account is started with.
func (a *account) credential() *syscall.Credential {
	if !a.other() {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}

// give makes the account the owner of a pipe or a terminal, which its command
// may want to open by its name, as in /dev/stdout.
func (a *account) give(fd int) error {
	if !a.other() {
		return nil
	}
	return os.NewSyscallError("fchown", unix.Fchown(fd, int(a.uid), -1))
}

// do calls f, which may do with files what the account may. Only the thread
// that f runs on is changed, and it is changed back: it must not end, because
// commands that it has started would be killed with it.
func (a *account) do(f func()) error {
	if !a.other() {
		f()
		return nil
	}
	runtime.LockOSThread()
	before, err := unix.Getgroups()
	if err == nil {
		err = assume(a.uid, a.gid, a.groups)
	}
	defer func() {
		own := make([]uint32, len(before))
		for i, gid := range before {
			own[i] = uint32(gid)
		}
		if err := assume(uint32(os.Geteuid()), uint32(os.Getegid()), own); err != nil {
			panic("daemon: cannot return to its own account: " + err.Error()) // no other work may get this thread
		}
		runtime.UnlockOSThread()
	}()
	if err != nil {
		return fmt.Errorf("act as user %d: %w", a.uid, err)
	}
	f()
	return nil
}

// assume sets what the kernel goes by when this thread opens files, and with
// the user 0 the rights over all of them go and come.
func assume(uid, gid uint32, groups []uint32) error {
	list := make([]int, len(groups))
	for i, gid := range groups {
		list[i] = int(gid)
	}
	if err := unix.Setgroups(list); err != nil {
		return os.NewSyscallError("setgroups", err)
	}
	unix.SetfsgidRetGid(int(gid))
	unix.SetfsuidRetUid(int(uid))
	// They report nothing; to ask for an impossible id says which one holds.
	if now, _ := unix.SetfsgidRetGid(-1); now != int(gid) {
		return errors.New("setfsgid: not permitted")
	}
	if now, _ := unix.SetfsuidRetUid(-1); now != int(uid) {
		return errors.New("setfsuid: not permitted")
	}
	return nil
}

// asUser calls f with the rights of the configured user to files. If that is
// impossible the error is of this kind.
func (d *daemon) asUser(kind string, f func() error) (err error) {
	who, err := lookup(d.cfg.Load().User)
	if refused, ok := errors.AsType[*failure](err); ok {
		return refuse(kind, "%s", refused.Message)
	}
	if err == nil {
		if failed := who.do(func() { err = f() }); failed != nil {
			err = failed
		}
	}
	return err
}
