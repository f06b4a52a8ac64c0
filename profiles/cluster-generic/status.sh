#!/bin/sh
# How a PBS job stands: running, success or failed. A job that qstat does not know any more ended
# long ago; without its exit status it counts as failed, and is tried again.
#   Grid Engine: qstat -j for running, else qacct -j and its exit_status
#   LSF: bjobs -noheader -o stat, where DONE is success and EXIT failed
said=$(qstat -x -f "$1") || { qstat >/dev/null && echo failed || echo running; exit 0; }
case $(echo "$said" | sed -n 's/^ *job_state = //p') in
F | C)
  case $(echo "$said" | sed -n 's/^ *[Ee]xit_status = //p') in
  0) echo success ;;
  *) echo failed ;;
  esac
  ;;
*) echo running ;;
esac
