from .comparison import compare as compare
from .figures import write_figures as write_figures
from .page import write_report as write_report
from .series import write_series as write_series
from .tables import write_table as write_table
from .tiers import write_all_claims as write_all_claims
from .told import print_claims as print_claims
from .told import write_claims as write_claims
